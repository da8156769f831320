"""What a frozen encoder allows: many heads at once, and heads on cached features.

Read frozen_encoder.py first.

frozen_encoder.py  many heads, or heads on cached features: what a frozen encoder allows
cache.py           tokens of a frozen encoder, computed once and kept
head_table.py      the heads of a grid, the best first
store.py           tokens on disk, whole or pending
"""
