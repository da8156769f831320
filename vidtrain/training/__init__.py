"""The loop, stages, schedules, checkpoints, ranks.

Read first, in this order: run.py, loop.py, phases.py, objective.py, optimizers.py.
To add a term of the loss: objective.py; a hook: `Run` and vidtrain.build_run.Record; a setting: settings.py.

loop.py            the loop
settings.py        what the loop owns, typed
stages.py          what a phase trains
optim.py           parameter groups
schedules.py       functions of the step
state.py           where a run stands
checkpoint.py      atomic saving, safe loading
checkpoint_files.py  which there are, and how a new one takes its place
saving.py          the run's checkpoints, while the disk may be full
resuming.py        which checkpoint a run goes on from, and which weights it reports
distributed.py     ranks and their few collectives
rendezvous.py      where they meet: what torchrun or SLURM says
vigil.py           ranks that watch over each other, and end together
halting.py         signals that ask a run to stop
seeding.py         what a step draws from
preflight.py       does every trainable parameter get a gradient?
profiling.py       the profiler of debug=profile
losses.py          cross-entropy, binary cross-entropy, focal; weights of classes
ema.py             an average of the weights
batch_norm.py      what batch norms do in fine-tuning
precision.py       in which numbers forward passes run
refusals.py        why a run ends before its time
timm_optimizer.py  timm's optimizers by name
validation.py      the weights and their average, on val
advice.py          what bounds a run, and what to change
benchmarking.py    the parts of a step, timed
flops.py           parameters and FLOPs
memory.py          memory at its peak
run.py             what the loop works with
phases.py          what outlives a phase, and what outlives a step
heads.py           the heads that a phase trains: one, or a grid
objective.py       the loss of every head on a batch
optimizers.py      the optimizer of a phase; in a grid, one for each head
head_table.py      the heads of a grid, the best first
token_store.py     tokens on disk, whole or pending
clock.py           parts of a step, on a CPU or a GPU
estimate.py        what a whole run would take
cores.py           how many cores there are to have now
"""
