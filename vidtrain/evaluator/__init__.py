"""What a split is judged by. A view table holds the logits of a checkpoint for every view; a report is made from it.
Simple models say what its accuracy is worth.

Read run.py first.

run.py          fills the view table; all ranks take part, and a killed evaluation continues
report.py       writes and prints the report of a table
calibration.py  fits the calibration of a checkpoint to a view table
baselines.py    what simple models reach on a dataset, kept with its index; a run beside the best of them
classifiers.py  from vectors and labels to probabilities: the majority, nearest neighbors, logistic regression
"""
