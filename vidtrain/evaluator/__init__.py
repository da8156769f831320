"""From a trained model and a manifest to a view table, and from the table to a report.

Read run.py first.

run.py      the pass that fills a view table, by all ranks and across kills
report.py   from the table to what a user reads
options.py  what the command line may change of a checkpoint, and what is wrong with it
"""
