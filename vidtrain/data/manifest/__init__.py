"""Which videos there are, with which labels, in which split; millions of them in little memory.

Read manifest.py first.

manifest.py       records and class names, in memory and in a folder of columns; one spelling for each class
columns.py        how millions of records lie in memory
files.py          what a source gave, kept for all runs; splits written as lists
split_records.py  what a split held at some time, in some bytes a video, and what differs in it now
splitting.py      train, val and test: made, and checked
"""
