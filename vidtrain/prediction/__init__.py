"""From videos and a trained model to answers: numbers, pictures, segments.

Read run.py first.

run.py       reads videos, classifies their clips and fuses the answers; joins windows into segments
outputs.py   writes each answer as it comes: rows, numbers and pictures
pictures.py  draws the sheet of a video with heat maps, and the labeled video
options.py   applies the settings to a checkpoint's configuration, and finds their faults
"""
