"""Train and fine-tune video classifiers: parts that work alone, composed by Hydra.

The root holds the programs, each with a main(), and errors.py:

train.py        the training app: compose, check, build, fit, evaluate
evaluate.py     evaluates a checkpoint without training
predict.py      says what is in videos, and where the model looked
compare.py      compares runs, offline, from their folders
sweep.py        shows where the trials of a sweep stand, and runs what is missing
export.py       writes a trained model as ONNX, torch.export or safetensors, with a card
benchmark.py    measures where the time of a run goes, and says what to change
split.py        makes train, val and test listings
prepare.py      re-encodes a dataset once, for faster reading
audit.py        reads every file and reports what is wrong
baselines.py    says what simple models reach on a dataset
embed.py        gives every video a vector, and says what is alike
labels.py       says which labels are probably wrong, and what to label next
errors.py       UserError, the fault that a user can mend

Every other room may import the rooms above it in this list, and none below (tests/test_architecture.py keeps it):

files/          bytes and text that outlive a crash and do no harm
data/           from files on disk to uint8 batches
models/         from clips to logits, and the formats of published weights
evaluation/     from logits to numbers
tracking/       what a run records, and the services that show it
reports/        pictures and pages
training/       the loop, phases, optimizers, checkpoints, ranks
config/         the configuration as text and types
build/          from the configuration to parts
evaluator/      the pass that fills a view table, and its report
features/       what a frozen encoder allows
baseline_models/  what simple models reach, and a run beside them
runs/           the life of one run
app/            from a command line to a program's task
benchmarking/   where the time goes
sweeps/         many runs
prediction/     from videos to answers
comparison/     from runs to conclusions
embeddings/     from videos to vectors, and what these tell
"""

__version__ = "0.1.0"
