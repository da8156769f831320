"""Numbers, faults and words of a run come in; files of its folder, lines on a console and calls of loggers leave.

Read run_log.py first.

run_log.py   what a run records, and where it came from
ledgers.py   files that survive a kill and can be rewound
console.py   progress bar or plain lines, on an output that a run outlives
loggers/     W&B, TensorBoard, MLflow
"""
