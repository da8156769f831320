"""Many runs over a space of overrides: samplers, launchers, records, and where each trial stands.

Read base.py first.

base.py                a sweep that goes on past failing trials and can be started again
grid.py                hydra/sweeper=grid: every combination
optuna_sweeper.py      hydra/sweeper=optuna: a search
record.py              sweep.json and trial.json: what a sweep is made of
status.py              where its trials stand
study.py               the Optuna study behind it; ending trials early
trial.py               what a run does as a trial
submitit_launchers.py  hydra/launcher=slurm and local, through submitit
"""
