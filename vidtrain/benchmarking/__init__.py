"""Where the time of a training step goes, and which setting would change it.

Read measure.py first.

measure.py   the parts of a step, the loader alone, the model alone
variants.py  the same with other settings, so that advice is measured; processor cores that are free now
advice.py    what bounds a run, and what to change
report.py    parameters, FLOPs, what a whole run would take, and the tables
"""
