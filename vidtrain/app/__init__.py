"""From a command line to a program's task: composed by Hydra, checked, ended with a clear word.

Read launch.py first.

launch.py   compose, report faults, end with a clear word
check.py    all faults of a configuration that show without data, found at once
plugins.py  our sweepers and launchers as Hydra's
"""
