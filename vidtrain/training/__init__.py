"""The training loop: it takes the `Run` that the app assembles, and produces checkpoints, log rows and trained weights.

Read first, in this order: loop.py, phases.py, run.py.
To add a term of the loss: `Classification` in losses.py; a hook: a field of `Run` and vidtrain.runs.assemble.Record,
which vidtrain/train.py fills and loop.py calls; a setting: `TrainerSettings` in run.py; a config group: `RunConfig` in
vidtrain/config/schemas.py, and its default in conf/_run.yaml.

loop.py        the loop
phases.py      `Trainer` and `TrainState`, the state of the whole run; `Phase`, the state of one phase
run.py         what the loop works with: settings, and the parts that the app assembles
stages.py      what a phase trains, at which rate and decay; its heads: one, or a grid
optimizers.py  the optimizer of a phase; in a grid, one for each head; timm's optimizers by name
schedules.py   learning rate and weight decay as functions of the step
losses.py      losses, class weights, the sums of an epoch, and the objective: the loss of every head on a batch
validation.py  evaluation on val, of the weights and of their moving average
checkpoint.py  checkpoints: atomic writing, safe reading, and the one that a run resumes from
profiling.py   seconds of each part of a step, peak memory, the profiler of debug=profile
distributed.py the ranks of a run: joining the process group, and the few collectives
heartbeat.py   monitors that notice a lost rank and end all others
process.py     this process as torchrun or SLURM started it: rank and address; the signals that stop it
"""
