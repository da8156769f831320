"""Starts a program: Hydra composes its configuration, which is checked, and then its task runs.

Read launch.py first.

launch.py       composes, reports faults, runs the task; a user's mistake ends it with a message and no traceback. Makes
                vidtrain's sweepers and launchers available to Hydra
check.py        finds all faults of a configuration that can be found without data, at once
view_tables.py  computes the view table of a checkpoint, with the changes of the command line, which it checks
"""
