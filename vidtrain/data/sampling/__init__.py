"""Which frames make a clip: pure functions of a video's metadata and a seed.

Read clips.py first.

clips.py     the protocol, and the indices of its clips
temporal.py  cuts by time, ends of short videos, frame orders, random speed and direction
"""
