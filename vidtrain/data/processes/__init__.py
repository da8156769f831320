"""Worker processes that may crash, hang or be killed: a function and its tasks enter, answers and losses leave.

Read watchdog.py first.

watchdog.py  the time limit of a file
workers.py   the processes, any function on many files, and tensors from one process to another
"""
