"""One vector for each video, and its uses: search, label errors, what to label next.

In come a frozen encoder and videos; out go a file of vectors with paths and labels, and tables, pages and files for
other tools. Read store.py first.

store.py   the file of embeddings, and the one that a killed call leaves; Parquet, FiftyOne and Label Studio
encoder.py from a checkpoint or published weights, and videos, to embeddings
search.py  exact nearest neighbors, near duplicates, videos that cover a set
labels.py  label errors, and the choice of videos to label
pages.py   the page of a set of embeddings, and the one on which labels are corrected
"""
