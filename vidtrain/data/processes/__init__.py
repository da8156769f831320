"""Worker processes that may crash, hang or be killed, and what they hand over.

Read watchdog.py first.

watchdog.py       the time limit of a file
isolated.py       any function on many files, each guarded
malloc.py         memory that a worker frees stays with it
shared_memory.py  tensors from one process to another
"""
