"""Reads the bytes of videos: plain files, members of tar files, and objects behind URLs, of which ranges are read.

Read places.py first.

places.py       the paths of videos, as text: files, URLs, members of tar files
objects.py      size, version and bytes of objects behind URLs, with retries and time limits
archives.py     tar files: the index beside one, and the samples in one from another program
outlines.py     MP4 files without their pictures, from which metadata is read
cache.py        whole videos, cached on this machine
files.py        one interface for all these places
"""
