"""From clip logits to numbers.

views.py        the logits of every view, gathered over ranks; clip fusion by name
view_store.py   the table as a folder of plain files, filled safe against kills
protocols.py    every protocol that a table holds, and temporal probes; the same as CSV and JSON
metrics.py      clip-level and video-level metrics, of one label a video or several
report.py       metrics with their protocol, and the tables behind them
calibration.py  how far probabilities can be believed; temperature and vector scaling
calibrated.py   what calibrating leaves of a checkpoint, and how that answers
predictions.py  what runs took each video for; the videos that they share; the bootstrap over them
"""
