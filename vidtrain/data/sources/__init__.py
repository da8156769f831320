"""What gives manifests: class_folders.py is the plainest, so read it first.

class_folders.py   root/split/class/video, or root/class/video; finding on disk what annotations name
frame_folders.py   folders of images
labels.py          from a listing's labels to classes
listing_format.py  how the lines of a listing are laid out
listings.py        CSV, TSV and other listings, one line a video; NumPy files of paths; several sources mixed
motion.py          the default dataset, made on first use
published.py       UCF-101, HMDB51, Kinetics, Something-Something v2
tables.py          text files of one record a line
"""
