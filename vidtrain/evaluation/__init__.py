"""From clip logits to numbers.

Read views.py first.

views.py        the logits of every view, gathered over ranks; clip fusion by name
view_store.py   the view table as a folder of plain files, which a kill does not damage
protocols.py    every protocol that a table holds, and temporal ablations; the same as CSV and JSON
metrics.py      metrics at clip and video level, for one label a video or several; bootstrap intervals
resampling.py   metrics over resampled videos, for intervals; the error due to seeds; McNemar's test
report.py       the report of an evaluation, and its files
predictions.py  the logits of an evaluation as a file; the predictions of several runs, aligned by video
calibration.py  how far probabilities can be believed; temperature and vector scaling
calibrated.py   the stored calibration of a checkpoint, applied to logits
"""
