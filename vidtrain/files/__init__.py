"""Bytes and text come in, and leave as files that outlive a crash and as text that does no harm.

Read atomic.py first.

atomic.py       files that are old or new, never half
escaping.py     names from outside as text, on consoles, in CSV, in Markdown; secrets masked
folders.py      those of this package; those that are written into: locks, links
torch_files.py  PyTorch files, read without running code
"""
