"""Train and fine-tune video classifiers: parts that work alone, composed by Hydra.

Programs, each with a main():

train.py               the training app: compose, check, build, fit, evaluate
evaluate.py            evaluates a checkpoint without training
compare.py             holds runs against each other, offline, from their folders
export.py              writes a trained model as ONNX, torch.export or safetensors, with a card
benchmark.py           measures where the time of a run goes, and says what to change
split.py               makes train, val and test listings
prepare.py             re-encodes a dataset once, for faster reading
audit.py               reads every file and reports what is wrong

What they rest on:

app.py                 compose, report faults, end with a clear word
schemas.py             typed configuration of every program
config.py              check_targets holds components against their signatures
annotations.py         what a constructor's annotations allow of plain values
check.py               all faults of a configuration that show without data, found at once
build.py               from configuration to parts
starting_point.py      the weights that a run starts from
trained.py             opening what was trained: a run, a checkpoint, an exported file
run_folder.py          choosing, recording and resuming a run's folder
frozen.py              many heads, or heads on cached features: what a frozen encoder allows
feature_cache.py       tokens of a frozen encoder, computed once and kept
stored_config.py       configurations of earlier versions, brought up to date
run_reading.py         what finished runs left in their folders
run_comparison.py      from runs to one summary of how they compare
comparison_notes.py    what a reader must know before believing it
export_model.py        what export does, for the end of training too
run_benchmark.py       what benchmark does
benchmark_variants.py  the same with other settings, so that advice is measured
split_files.py         the files that split writes
torch_files.py         PyTorch files, read without running code
errors.py              UserError, the fault that a user can mend

Wings, which know nothing of Hydra or of each other (training may use evaluation):

data/                  models/ evaluation/ training/ tracking/
"""

__version__ = "0.1.0"
