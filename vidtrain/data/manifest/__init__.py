"""Which videos there are, with which labels, in which split; millions of them in little memory.

Read manifest.py first.

manifest.py       records and class names
balance.py        how often each class is drawn
checks.py         what no dataset may be
class_names.py    one spelling for each class
columns.py        how millions of them lie in memory
files.py          what a source found, kept for all runs
format.py         the file of a manifest, mapped into memory
split_changes.py  what differs in it now, by name
split_files.py    the files that split writes
split_records.py  what a split held at some time, in some bytes a video
splitting.py      train, val and test; groups kept whole
"""
