"""Augmentation and preprocessing: geometry is applied while decoding, the rest in batches on the device.

geometry.py      chooses the box of the frame that a view shows (pure functions)
device.py        color, normalization, random erasing, MixUp and CutMix on the device; random numbers of a view
rand_augment.py  RandAugment for clips
"""
