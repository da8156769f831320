"""From a file and frame numbers to exact pixels.

Read decoder.py first.

decoder.py      frame-exact pixels of the views that are wanted; all frames of a video; writing a new one
container.py    opening a file safely, reading it in order, and frames that the decoder made up
conversion.py   crop, scale, convert and turn a frame in one pass
frame_times.py  when each frame is shown, also where a file does not say so
index.py        keeping what is known of files, for all workers and runs
metadata.py     finding out what a file or a folder of images holds, once per file
video.py        what is known of a video, and how it is turned to be shown
"""
