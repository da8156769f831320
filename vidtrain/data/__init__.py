"""From a file on disk to a uint8 batch.

audit/                 what is wrong with a dataset
augment/               geometry while decoding; the rest batched on the device
sources/               what gives manifests: one file a source
manifest/          which videos there are, with which labels, in which split
sampling/          which frames make a clip
decoding/          from a file and frame numbers to exact pixels
loading/           from a manifest to uint8 batches
prepared/          a dataset re-encoded once
"""
