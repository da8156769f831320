"""Decodes given frames of a file to exact pixels.

Read decoder.py first.

decoder.py       decodes the frames of views exactly, or all frames of a video; writes a video
container.py     opens a file safely and reads it in order; recognizes damaged frames; presentation times
conversion.py    crops, scales, converts and rotates a frame in one pass
index.py         stores the metadata of files, for all workers and runs
metadata.py      reads the metadata of a file or a folder of images, once for each file
video.py         the metadata of a video, and its orientation
watchdog.py      the time limit for a file, in processes that read videos

Below the container:
entry_points.py  finds packets at which decoding can start, and packets that can be skipped
headers.py       reads the headers of H.264 and AV1 bit by bit
packets.py       decodes from byte ranges, without a container; tests which packets can be skipped
"""
