"""Loads a manifest as uint8 batches, with prefetching.

Read dataset.py first.

dataset.py      from a sample's key to uint8 clips; batches; what stores are asked for before it is needed
file_checks.py  what every file of a split is looked at for: bounds, a protocol that refuses it, its content's hash
loaders.py      batches, read ahead by worker processes
quarantine.py   files that are not tried again
samplers.py     which samples, in which order, and how often each class is drawn
windows.py      videos of any length, whole or in windows
workers.py      processes that may crash, hang or be killed; any function on many files; tensors between processes
"""
