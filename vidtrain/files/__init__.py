"""Bytes and text that outlive a crash and do no harm: atomic writes, locks, escaped names, masked secrets.

Read atomic.py first.

atomic.py       files that are old or new, never half
escaping.py     names from outside as text: on consoles, in HTML, Markdown, pictures and CSV
fsync.py        text files that are whole, and names that last, after a crash
links.py        links in folders that are written into, which must not lead out of them
lock.py         one process per run folder
masking.py      what is never printed or written
shipped.py      files beside the code, in a checkout and in a wheel
torch_files.py  PyTorch files, read without running code
"""
