"""Where the bytes of videos lie: plain files, members of tar files, and objects behind URLs, read by ranges.

Read places.py first.

places.py       what a path names, as text alone
objects.py      size, version and bytes of objects behind URLs; tries, waits, and what counts as lost
archives.py     tar files: the index beside one, and what is in one that others have packed
outlines.py     MP4 files without their pictures, from which an index is made
cache.py        whole videos, kept on this machine
files.py        one face for all places: what readers of a file need
"""
