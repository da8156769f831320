"""What simple models reach on a dataset: what a number of a trained one is worth.

In come the clips of every video; out go answers of the majority class, of small pictures and of frozen image networks,
kept with the dataset's index, and what a run's result is beside them. Start with descriptors.py.

descriptors.py  from clips to vectors: mean frame, motion map, color histogram, features of an image network
networks.py     the image network whose frozen features are baselines
classifiers.py  from vectors and labels to probabilities: the majority, nearest neighbors, logistic regression
measure.py      from the videos of all splits to the answers of every baseline
store.py        the answers in the dataset's index folder, found again by what the splits hold
verdict.py      a run beside the best baseline, paired over videos
"""
