"""Sweeps: many runs over a space of overrides, with their samplers, launchers, records and states.

Read base.py first.

base.py                a sweep that continues after a failed trial and can be resumed; hydra/sweeper=grid
optuna_sweeper.py      hydra/sweeper=optuna: a search, and its Optuna study, which ends trials early
record.py              sweep.json and trial.json; the state of each trial; what a run does differently as a trial
submitit_launchers.py  hydra/launcher=slurm and local, through submitit
"""
