"""From videos and a trained model to answers: numbers, pictures, segments.

Read run.py first.

run.py       what predict does: reads, judges, gives an answer for each video
files.py     ... in numbers
outputs.py   what is made of every answer as it comes
pictures.py  ... and in pictures
segments.py  from the probabilities of windows to what happens when
setup.py     what predict makes of a checkpoint
options.py   what is wrong with its settings, as far as the command line tells
"""
