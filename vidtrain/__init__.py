"""Train and fine-tune video classifiers: parts that work alone, composed by Hydra.

Programs, each with a main():

train.py               the training app: compose, check, build, fit, evaluate
evaluate.py            evaluates a checkpoint without training
predict.py             says what is in videos, and where it looked
compare.py             holds runs against each other, offline, from their folders
sweep.py               shows where the trials of a sweep stand, and runs what is missing
export.py              writes a trained model as ONNX, torch.export or safetensors, with a card
benchmark.py           measures where the time of a run goes, and says what to change
split.py               makes train, val and test listings
prepare.py             re-encodes a dataset once, for faster reading
audit.py               reads every file and reports what is wrong

What they rest on:

app.py                 compose, report faults, end with a clear word
bare_words.py          paths on a command line, as the overrides that Hydra takes
schemas.py             typed configuration of every program
schemas_data.py        the same of audit, prepare and split
config.py              check_targets holds components against their signatures
annotations.py         what a constructor's annotations allow of plain values
check.py               all faults of a configuration that show without data, found at once
build.py               from configuration to parts
build_data.py          from configuration to manifests and batches
build_run.py           from configuration to a run; the one place where the loop's Run is assembled
starting_point.py      the weights that a run starts from
trained.py             opening what was trained: a run, a checkpoint, an exported file
run_folder.py          choosing, recording and resuming a run's folder
run_data.py            what the data of a run were when it was started, held against what is there
frozen.py              many heads, or heads on cached features: what a frozen encoder allows
feature_cache.py       tokens of a frozen encoder, computed once and kept
references.py          references to the environment, which stay where a configuration is stored
trust.py               what a configuration from elsewhere may name and refer to
stored_config.py       configurations of earlier versions, brought up to date
stored_overrides.py    overrides that may be taken from the folder of a run or a sweep
evaluate_views.py      the pass that fills a view table, by all ranks and across kills
evaluate_report.py     from the table to what a user reads
attempts.py            the record of a run's attempts, and whether a scheduler is to try again
launcher_plugin.py     our launchers as Hydra's
launching.py           hydra/launcher=slurm and local, through submitit
outcome.py             how an attempt at a run ended, where that was not its end
sweep_plugin.py        our sweepers as Hydra's
sweep_base.py          a sweep that goes on past failing trials and can be started again
sweep_grid.py          hydra/sweeper=grid: every combination
sweep_optuna.py        hydra/sweeper=optuna: a search
sweep_study.py         the Optuna study behind it; ending trials early
sweep_overrides.py     overrides that hold several values
sweep_record.py        sweep.json and trial.json: what a sweep is made of
sweep_status.py        where its trials stand
sweep_trial.py         what a run does as a trial
run_reading.py         what finished runs left in their folders
run_comparison.py      from runs to one summary of how they compare
comparison_notes.py    what a reader must know before believing it
run_report.py          the close of a run: its best checkpoint on test
run_pictures.py        the pictures that close a run
export_model.py        what export does, for the end of training too
run_benchmark.py       what benchmark does
benchmark_variants.py  the same with other settings, so that advice is measured
prediction_setup.py    what predict makes of a checkpoint
run_prediction.py      what predict does: reads, judges, gives an answer for each video
prediction_outputs.py  what is made of every answer as it comes
prediction_files.py    ... in numbers
prediction_pictures.py ... and in pictures
segments.py            from the probabilities of windows to what happens when
split_files.py         the files that split writes
secrecy.py             what is never printed or written
names.py               names from outside as text: on consoles, in HTML, Markdown, pictures and CSV
flushing.py            text files that are whole, and names that last, after a crash
shipped.py             files beside the code, in a checkout and in a wheel
links.py               links in folders that are written into, which must not lead out of them
torch_files.py         PyTorch files, read without running code
errors.py              UserError, the fault that a user can mend

Wings, which know nothing of Hydra or of each other (training may use evaluation):

data/                  models/ evaluation/ training/ tracking/
"""

__version__ = "0.1.0"
