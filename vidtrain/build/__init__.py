"""From a checked configuration to parts: the one room that turns `cfg` into objects.

Read parts.py first.

parts.py              from configuration to parts, and to the weights that a run starts from
checkpoint_loader.py  opening what was trained: a run, a checkpoint, an exported file
adapters.py           low-rank adapters of a run, and the weights that its checkpoints name and do not hold
data.py               from configuration to manifests and batches
"""
