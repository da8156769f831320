"""Geometry while decoding; the rest batched on the device.

geometry.py      where a view is cut from the frame (pure functions)
device.py        color, normalization and erasing, batched on the device; random numbers that belong to a view
rand_augment.py  RandAugment for clips
erasing.py       random erasing
mixing.py        MixUp and CutMix
"""
