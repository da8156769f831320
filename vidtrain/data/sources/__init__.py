"""Sources of datasets, which return manifests. Read folders.py first; it has the simplest.

folders.py         root/split/class/video, or root/class/video; folders of images
labels.py          maps a listing's labels to classes
listing_format.py  detects the format of a listing's lines
listings.py        CSV, TSV and other listings, one line a video; NumPy files of paths; several sources mixed
motion.py          the default dataset, made on first use
published.py       UCF-101, HMDB51, Kinetics, Something-Something v2
shards.py          tar files that vidtrain.prepare packed
tables.py          text files with one record a line
unlabeled.py       videos without labels; the videos that people name
"""
