"""Console, files, plots, pages, trackers.

run_log.py             what a run records
ledgers.py             files that survive a kill and can be rewound
console.py             progress bar or plain lines
streams.py             standard output on a full disk, or that nobody reads
mirror.py              what a tracker must offer
mirrors.py             several trackers at once
mirror_process.py      a tracker in a process of its own, which can never stop, slow or hang training
mirror_service.py      what runs there
mirror_channel.py      messages between the two
wandb_mirror.py        W&B
tensorboard_mirror.py  TensorBoard
mlflow_mirror.py       MLflow
fonts.py               names in any script: fonts that have them, else letters or numbers
guarding.py            a picture or page that fails costs only itself
plots.py               curves and confusion matrix as PNG
wrong_sheet.py         what a model got wrong with the most confidence, as PNG
fonts.py               names in any script: fonts that have them, and what is drawn where none has
guarding.py            pictures and pages may fail: the program goes on
provenance.py          machine, packages, commit
view_charts.py         what views are worth, as PNG
audit_page.py          the audit as one HTML file
audit_charts.py        its charts
lock.py                one process per run folder
atomic.py              files that are old or new, never half
markup.py              building blocks of the HTML pages
compare_page.py        the comparison as one HTML file
compare_pairs.py       its sections on differences, classes and videos
compare_markup.py      its signed numbers and verdicts
compare_charts.py      its pictures
sweep_charts.py        parallel coordinates and importance
compare_tables.py      its CSV tables
overlays.py            heat maps over pictures, captions below them
contact_sheet.py       what a model saw of a video, and where it looked
timeline.py            probabilities over the time of a video
model_card.py          a finished run as a model card
"""
