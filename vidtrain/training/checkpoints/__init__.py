"""Checkpoints: written whole, read safely, replaced in turn, resumed from.

Read checkpoint.py first.

checkpoint.py  atomic saving, safe loading
files.py       which there are, and how a new one takes its place
resume.py      which checkpoint a run goes on from, and which weights it reports
saver.py       the run's checkpoints, while the disk may be full
"""
