"""From a manifest to uint8 batches, read ahead.

Read dataset.py first.

dataset.py       from a sample's key to uint8 clips; batches
digests.py       what the files of a split hold, as one hash
filters.py       training videos that are too short, too long, too large
loaders.py       batches, read ahead by worker processes
quarantine.py    files that are not tried again
samplers.py      which samples a step reads
short_videos.py  those that a protocol cannot be used on
video_paths.py   which videos are meant by files, folders, patterns and listings
windows.py       videos of any length, whole or in windows
"""
