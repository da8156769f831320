"""From a file on disk to a uint8 batch.

sources/   what gives manifests: one file a source
manifest/  which videos there are, with which labels, in which split
sampling/  which frames make a clip
stores/    where bytes lie: plain files, tar files, URLs
decoding/  from a file and frame numbers to exact pixels
augment/   geometry while decoding; the rest batched on the device
loading/   from a manifest to uint8 batches
prepared/  a dataset re-encoded once
audit/     what is wrong with a dataset
"""
