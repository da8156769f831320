"""From finished runs to what may be concluded of their difference.

Read run.py first.

run.py         from runs to one summary of how they compare, with what a reader must know before believing it
paired.py      two recipes: difference, classes, videos that flipped
recipes.py     which settings differ; which runs are one recipe over seeds; which recipes are compared
runs.py        what finished runs left in their folders
statistics.py  scores under resampling, seed spread, McNemar's exact test; what a setting accounts for
"""
