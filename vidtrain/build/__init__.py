"""Builds objects from a checked configuration. No package below this one reads `cfg`.

Read parts.py first.

parts.py              builds the parts of a run; the weights that it starts from, and its low-rank adapters
checkpoint_loader.py  opens a trained model: a run, a checkpoint or an exported file
data.py               builds manifests and batches
"""
