"""Published weights: found, recognized, compared with the model, placed.

files.py      finding weights by name, reading any container
format.py     what a published format must say of itself
loading.py    recognized, compared with the model, placed
report.py     what found its place, and what did not
resize.py     patch embeddings and position tables of another size
published.py  what the publishers of weights say of clips and classes
card.py       where an exported file says what it is
formats/      one file a family
"""
