"""Phases that train heads on a frozen encoder, on clips or on tokens that are cached on disk.

Read frozen_encoder.py first.

frozen_encoder.py  the task of such a phase: its heads, its batches and their evaluation
store.py           tokens on disk, which survive a kill
"""
