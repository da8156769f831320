"""Many runs over a space of overrides: samplers, launchers, records, and where each trial stands.

Read base.py first.

base.py                a sweep that goes on past failing trials and can be started again; hydra/sweeper=grid
optuna_sweeper.py      hydra/sweeper=optuna: a search, and the Optuna study behind it, which ends trials early
record.py              sweep.json and trial.json: what a sweep is made of, and what a run does as a trial
status.py              where its trials stand
submitit_launchers.py  hydra/launcher=slurm and local, through submitit
"""
