"""The ranks of a run: how they find each other, their collectives, and how all end when one fails or is stopped.

Read distributed.py first.

distributed.py  joining the process group, and the few collectives
heartbeat.py    monitors that notice a lost rank and end all others
rendezvous.py   rank, world size and address, from the environment of torchrun or SLURM
signals.py      signals that ask a run to stop
"""
