"""What simple models reach on a dataset: what a number of a trained one is worth.

In come the clips of every video; out go answers of the majority class, of small pictures and of frozen image networks,
kept with the dataset's index, and what a run's result is beside them. Start with measure.py.

measure.py      from the clips of all splits to vectors, and to the answers of every baseline
classifiers.py  from vectors and labels to probabilities: the majority, nearest neighbors, logistic regression
store.py        the answers in the dataset's index folder; a run beside the best baseline, paired over videos
"""
