"""Which frames make a clip: pure functions of a video's metadata and a seed.

Read clips.py first.

clips.py      the protocol, and the indices of its clips
published.py  indices as publishers' code has them
temporal.py   stretches of a video, ends of short ones, frame orders, random speed and direction
"""
