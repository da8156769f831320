"""What gives manifests: folders.py has the plainest, so read it first.

folders.py         root/split/class/video, or root/class/video; folders of images
labels.py          from a listing's labels to classes
listing_format.py  how the lines of a listing are laid out
listings.py        CSV, TSV and other listings, one line a video; NumPy files of paths; several sources mixed
motion.py          the default dataset, made on first use
published.py       UCF-101, HMDB51, Kinetics, Something-Something v2
shards.py          tar files that vidtrain.prepare packed
tables.py          text files of one record a line
unlabeled.py       videos without labels; the videos that people name
"""
