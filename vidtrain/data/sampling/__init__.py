"""Which frames make a clip: pure functions of a video's metadata and a seed.

Read clips.py first.

clips.py     which frames make a clip (pure functions)
policies.py  short videos; frames in another order
temporal.py  cuts by time; random speed and direction
vjepa2.py    V-JEPA 2's way to choose them
"""
