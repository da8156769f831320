"""Evaluates a trained model on a split: writes the logits of every view into a table, and a report from the table.

Read run.py first.

run.py      fills the view table; all ranks take part, and a killed evaluation continues
report.py   writes and prints the report of a table
calibration.py  fits the calibration of a checkpoint to a view table
options.py  the settings of a checkpoint that the command line may change, and checks of them
"""
