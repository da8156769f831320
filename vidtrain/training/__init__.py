"""The loop: what the app assembles comes in as a `Run`; checkpoints, rows of the log and trained weights come out.

Read first, in this order: loop.py, phases.py, run.py.
To add a term of the loss: `Classification` in losses.py; a hook: `Run` and vidtrain.runs.assemble.Record; a setting:
`TrainerSettings` in run.py.

loop.py        the loop
phases.py      what outlives a phase, and what outlives a step
run.py         what the loop works with: settings, and the parts that the app assembles
stages.py      what a phase trains, at which rate and decay; its heads: one, or a grid
optimizers.py  the optimizer of a phase; in a grid, one for each head; timm's optimizers by name
schedules.py   functions of the step
losses.py      losses, weights of classes, and the loss of every head on a batch: an objective
masked_prediction.py  the objective of pretraining, which looks at no labels
state.py       where a run stands
validation.py  the weights and their average, on val
checkpoint.py  checkpoints: written whole, read safely, replaced in turn, while the disk may be full; which one is used
profiling.py   parts of a step, memory at its peak, the profiler of debug=profile
ranks/         processes that train together
"""
