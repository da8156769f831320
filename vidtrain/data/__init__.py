"""Reads videos from disk or from a store into uint8 batches.

sources/   dataset sources, which return manifests: a file for each
manifest/  manifests: the videos of a split with their labels
sampling/  chooses the frames of a clip
stores/    reads bytes from plain files, tar files and URLs
decoding/  decodes given frames of a file to exact pixels
augment/   augmentation: geometry while decoding, the rest in batches on the device
loading/   loads a manifest as uint8 batches
prepared/  a dataset that was re-encoded once
audit/     finds problems of a dataset
"""
