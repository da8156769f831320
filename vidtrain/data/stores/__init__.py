"""Where the bytes of videos lie: plain files, members of tar files, and objects behind URLs, read by ranges.

Read places.py first.

places.py       what a path names, as text alone
objects.py      size, version and bytes of objects behind URLs; tries, waits, and what counts as lost
archives.py     what is in tar files that others have packed
shard_index.py  what lies beside a tar file, so that its videos need not be looked at
outlines.py     MP4 files without their pictures, from which an index is made
cache.py        whole videos, kept on this machine
files.py        one face for all places: what readers of a file need
"""
