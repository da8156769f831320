"""Console, files, plots, pages, trackers.

run_log.py             what a run records
ledgers.py             files that survive a kill and can be rewound
console.py             progress bar or plain lines
streams.py             standard output on a full disk, or that nobody reads
provenance.py          machine, packages, commit
loggers/           W&B, TensorBoard, MLflow
"""
