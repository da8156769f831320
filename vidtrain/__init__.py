"""Trains and fine-tunes video classifiers. Hydra composes the parts, which can also be used alone.

The root holds the programs, each with a main(), and errors.py:

train.py        trains: composes, checks, builds, fits, evaluates
evaluate.py     evaluates a checkpoint without training
calibrate.py    calibrates probabilities, and sets the thresholds of answers
predict.py      classifies videos, and shows where the model looked
compare.py      compares finished runs, from their folders alone
sweep.py        shows the state of a sweep's trials, and runs the missing ones
export.py       writes a trained model as ONNX, torch.export or safetensors, with a model card
benchmark.py    measures where the time of a run goes, and advises faster settings
split.py        writes train, val and test listings
prepare.py      re-encodes a dataset once, so that it is read faster
audit.py        reads every file of a dataset and reports what is wrong
baselines.py    measures the accuracy of simple models on a dataset
embed.py        computes a vector for each video, and finds similar videos
labels.py       ranks labels that are probably wrong, and lists what to label next
errors.py       UserError, for a mistake that the user can correct

Each folder may import the folders above it in this list, and none below (tests/test_architecture.py checks it):

files/          writing files atomically, escaping text, locking folders
data/           from video files to uint8 batches
models/         from clips to logits; the formats of published weights
evaluation/     from logits to metrics
tracking/       log files and console of a run; W&B, TensorBoard, MLflow
reports/        plots and HTML pages
training/       the loop, phases, optimizers, checkpoints, ranks
config/         schemas, checks and overrides of configurations
build/          builds objects from a configuration
evaluator/      evaluates a checkpoint: fills a view table, and reports on it; simple models beside it
runs/           one run from its start to its report
app/            starts a program: composes, checks, reports mistakes
benchmarking/   measures the parts of a training step
sweeps/         many runs over a space of overrides
prediction/     classifies videos
comparison/     compares finished runs
embeddings/     vectors of videos, and what follows from them: neighbors, near duplicates, wrong labels
"""

__version__ = "0.1.0"
