"""From videos and a trained model to answers: numbers, pictures, segments.

Read run.py first.

run.py       what predict does: reads, judges, gives an answer for each video; from windows to segments
outputs.py   what is made of every answer as it comes: rows and numbers
pictures.py  ... and pictures
options.py   what the settings mean for a checkpoint, and what is wrong with them
"""
