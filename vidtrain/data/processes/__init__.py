"""Worker processes that may crash, hang or be killed, and what they hand over.

Read watchdog.py first.

watchdog.py  the time limit of a file
isolated.py  any function on many files, each guarded
memory.py    what a worker frees stays with it; tensors from one process to another
"""
