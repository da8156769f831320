"""A dataset re-encoded once, for faster reading.

Read copy.py first.

copy.py      a prepared copy of a dataset
reencode.py  one video to one prepared file
"""
