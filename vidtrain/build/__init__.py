"""From a checked configuration to parts: the one room that turns `cfg` into objects.

Read parts.py first.

parts.py              from configuration to parts
checkpoint_loader.py  opening what was trained: a run, a checkpoint, an exported file
data.py               from configuration to manifests and batches
pretrained_init.py    the weights that a run starts from
"""
