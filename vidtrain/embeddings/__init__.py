"""One vector for each video, and its uses: search, label errors, what to label next.

A frozen encoder maps videos to a file of vectors with paths and labels. Tables, pages and files for other tools follow
from it. Read store.py first.

store.py    the file of embeddings, and the one that a killed call leaves; Parquet, FiftyOne and Label Studio
encoder.py  computes embeddings of videos with a checkpoint or published weights
ranking.py  exact nearest neighbors, near duplicates, covering sets, suspect labels, and the choice of videos to label
pages.py    the page of a set of embeddings, and the one on which labels are corrected
"""
