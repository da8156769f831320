"""Writes files that survive a crash, escapes text, locks folders, and reads PyTorch files safely.

Read atomic.py first.

atomic.py       files that survive a crash: replaced as a whole, or growing by rows; strict JSON
escaping.py     escapes names for consoles, CSV and Markdown; masks secrets
folders.py      the folders of this package; locks of run folders, and checks of links in them
torch_files.py  reads PyTorch files without running code from them
"""
