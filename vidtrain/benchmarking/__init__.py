"""Measures where the time of a training step goes, and which settings would make a run faster.

Read measure.py first.

measure.py   times the parts of a step, the loader alone, and the model alone; counts free processor cores
advice.py    the bottleneck of a run; measures other settings, and advises the faster ones
report.py    the results: rates, parameters, FLOPs, estimated time of a whole run, tables, and a proof of advice
"""
