"""Compares finished runs: how much they differ, and whether the differences are more than chance.

Read run.py first.

run.py         compares all runs, and returns one summary, with notes on what limits its conclusions
paired.py      compares two recipes: their difference, per class, the videos whose prediction changed
recipes.py     which settings differ, and how much each explains; which runs are one recipe; which are compared
runs.py        reads finished runs from their folders
"""
