"""Processes that train together: where they meet, what they exchange, how they end together.

Read distributed.py first.

distributed.py  ranks and their few collectives
heartbeat.py    ranks that watch over each other, and end together
rendezvous.py   where they meet: what torchrun or SLURM says
signals.py      signals that ask a run to stop
"""
