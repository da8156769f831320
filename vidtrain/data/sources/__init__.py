"""What gives manifests: one file a source.

class_folders.py        root/split/class/video, or root/class/video
listing_format.py       how the lines of a listing are laid out
delimiters.py           what stands between the fields of a line
listings.py             CSV, TSV and other listings, one line a video
npy_listings.py         NumPy files of paths
mixture.py              several sources with weights and their own frames per clip
official_splits.py      UCF-101 and HMDB51
kinetics.py             Kinetics CSV; clips cut by time
something_something.py  Something-Something v2
frame_folders.py        folders of images
motion.py               the default dataset, made on first use
motion_scenes.py        what its videos show
tables.py               text files of one record a line
labels.py               from a listing's labels to classes
video_files.py          finding on disk what annotations name
"""
