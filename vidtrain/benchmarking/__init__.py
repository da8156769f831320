"""Where the time of a training step goes, and which setting would change it.

Read run.py first.

run.py       what benchmark does
advice.py    what bounds a run, and what to change
cores.py     processor cores that are free now
estimate.py  what a whole run would take
flops.py     parameters and FLOPs
steps.py     the parts of a step, timed
variants.py  the same with other settings, so that advice is measured
"""
