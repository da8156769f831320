"""Builds objects from a checked configuration. No package below this one reads `cfg`.

Read parts.py first.

parts.py              builds the parts of a run, and loads the weights that it starts from
checkpoint_loader.py  opens a trained model: a run, a checkpoint or an exported file
adapters.py           low-rank adapters of a run, and the frozen weights that its checkpoints leave out
data.py               builds manifests and batches
"""
