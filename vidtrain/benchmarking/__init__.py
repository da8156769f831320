"""Measures where the time of a training step goes, and which settings would make a run faster.

Read measure.py first.

measure.py   times the parts of a step, the loader alone, and the model alone
variants.py  measures other settings, so that all advice is measured, and the processor cores that are free now
advice.py    the bottleneck of a run, and which settings to change
report.py    parameters, FLOPs, estimated time of a whole run, and the tables
"""
