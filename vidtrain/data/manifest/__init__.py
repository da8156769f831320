"""Manifests: the videos of each split with their labels. Millions of records fit in little memory.

Read manifest.py first.

manifest.py       records and class names, in memory and in a folder of columns; normalizes class names
columns.py        stores millions of records as columns
files.py          caches the manifests of a source for all runs; writes splits as listings
split_records.py  records a split's files compactly, and compares them with the files at a later time
splitting.py      divides a dataset into train, val and test, and checks existing splits
"""
