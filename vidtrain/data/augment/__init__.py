"""Geometry while decoding; the rest batched on the device.

geometry.py      where a view is cut from the frame (pure functions)
device.py        color, normalization and random erasing, batched on the device; random numbers of a view
rand_augment.py  RandAugment for clips
mixing.py        MixUp and CutMix
"""
