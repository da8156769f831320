"""Re-encodes a dataset once, for faster reading, and packs datasets into tar files.

Read copy.py first.

copy.py      a prepared copy of a dataset
reencode.py  one video to one prepared file
shards.py    a dataset packed into tar files
"""
