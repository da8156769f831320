"""From a file and frame numbers to exact pixels.

Read decoder.py first.

decoder.py        frame-exact pixels of the views that are wanted
conversion.py     crop, scale, convert and turn a frame in one pass
damage.py         frames that the decoder made up
ffmpeg_log.py     what FFmpeg says in its log only
frame_times.py    when each frame is shown, also where a file does not say so
image_folders.py  a folder of images read as a video
index.py          keeping it, for all workers and runs
metadata.py       finding it out, once per file
orientation.py    how a coded picture is turned and mirrored to be shown
pixel_bounds.py   how large a picture may be
swscale.py        how fast swscale shrinks on this processor
video.py          what is known of a video
writer.py         all frames of a video, and writing a new one
"""
