"""The loop, stages, schedules, checkpoints, ranks.

Read first, in this order: run.py, loop.py, phases.py, objective.py, optimizers.py.
To add a term of the loss: objective.py; a hook: `Run` and vidtrain.runs.assemble.Record; a setting: settings.py.

loop.py            the loop
settings.py        what the loop owns, typed
stages.py          what a phase trains
parameter_groups.py  which parameters train at which rate and decay
guards.py          why a run ends before its time
clock.py           parts of a step, on a CPU or a GPU
schedules.py       functions of the step
state.py           where a run stands
seeding.py         what a step draws from
preflight.py       does every trainable parameter get a gradient?
profiling.py       the profiler of debug=profile
losses.py          cross-entropy, binary cross-entropy, focal; weights of classes
ema.py             an average of the weights
batch_norm.py      what batch norms do in fine-tuning
precision.py       in which numbers forward passes run
timm_optimizer.py  timm's optimizers by name
validation.py      the weights and their average, on val
memory.py          memory at its peak
run.py             what the loop works with
phases.py          what outlives a phase, and what outlives a step
heads.py           the heads that a phase trains: one, or a grid
objective.py       the loss of every head on a batch
optimizers.py      the optimizer of a phase; in a grid, one for each head
checkpoints/       written whole, read safely, resumed from
ranks/             processes that train together
"""
