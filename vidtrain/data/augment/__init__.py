"""Geometry while decoding; the rest batched on the device.

geometry.py      where a view is cut from the frame (pure functions)
device.py        color, normalization, random erasing, MixUp and CutMix on the device; random numbers of a view
rand_augment.py  RandAugment for clips
"""
