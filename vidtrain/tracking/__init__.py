"""Console, files, plots, pages, trackers.

run_log.py         what a run records
ledgers.py         files that survive a kill and can be rewound
console.py         progress bar or plain lines
mirror.py          what a tracker must offer
wandb_mirror.py    W&B, which can never stop training
plots.py           curves and confusion matrix as PNG
provenance.py      machine, packages, commit
audit_page.py      the audit as one HTML file
audit_charts.py    its charts
lock.py            one process per run folder
atomic.py          files that are old or new, never half
markup.py          building blocks of the HTML pages
compare_page.py    the comparison as one HTML file
compare_pairs.py   its sections on differences, classes and videos
compare_markup.py  its signed numbers and verdicts
compare_charts.py  its pictures
sweep_charts.py    parallel coordinates and importance
compare_tables.py  its CSV tables
model_card.py      a finished run as a model card
"""
