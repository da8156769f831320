"""From a file and frame numbers to exact pixels.

Read decoder.py first.

decoder.py       frame-exact pixels of the views that are wanted; all frames of a video; writing a new one
container.py     opening a file safely, reading it in order, frames that the decoder made up; when each is shown
conversion.py    crop, scale, convert and turn a frame in one pass
index.py         keeping what is known of files, for all workers and runs
metadata.py      finding out what a file or a folder of images holds, once per file
video.py         what is known of a video, and how it is turned to be shown
watchdog.py      the time limit of a file, in processes that read videos

Below the container:
entry_points.py  where in a file decoding can start, and what can be left out
headers.py       reading the headers of H.264 and AV1 bit by bit
packets.py       decoding from byte ranges, without a container; trying out what can be left out
"""
