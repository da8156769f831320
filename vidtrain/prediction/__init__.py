"""Classifies videos with a trained model: probabilities, segments in time, and pictures.

Read run.py first.

run.py       reads videos, classifies their clips and fuses the logits; joins windows into segments
outputs.py   writes each prediction as soon as it is known: rows, numbers and pictures
pictures.py  draws the sheet of a video with heat maps, and the labeled video
options.py   applies the settings to a checkpoint's configuration, and finds their faults
"""
