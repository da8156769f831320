"""Compares finished runs: how much they differ, and whether the differences are more than chance.

Read run.py first.

run.py         compares all runs, and returns one summary, with notes on what limits its conclusions
paired.py      compares two recipes: their difference, per class, and the videos whose prediction changed
recipes.py     which settings differ; which runs are one recipe over seeds; which recipes are compared
runs.py        reads finished runs from their folders
statistics.py  scores under resampling, seed spread, McNemar's exact test, and the importance of each setting
"""
