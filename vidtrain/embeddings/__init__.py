"""From videos to one vector each, and what vectors tell: what is alike, which labels are wrong, what to label next.

In come a frozen encoder and videos; out go a file of vectors with paths and labels, and tables, pages and files of
other tools that are made of it. Read store.py first.

store.py     the file of embeddings
encoder.py   from a checkpoint or published weights, and a dataset, to embeddings
search.py    exact nearest neighbors, near duplicates, videos that cover a set
labels.py    labels that are probably wrong, and the videos that are worth a label
exchange.py  datasets as FiftyOne and Label Studio import them
pages.py     the page of a set of embeddings, and the one on which labels are corrected
"""
