"""Recording a run: its metrics, unreadable videos and messages go to files, to the console and to loggers such as W&B.

Read run_log.py first.

run_log.py         the log files of a run folder; the machine, packages and code that the run used
console.py         progress bar or plain lines; the run goes on if its output is lost
logger_process.py  the interface of a logger, and the process that runs it, so that it cannot delay or stop training
trackers.py        the loggers: W&B, TensorBoard, MLflow
"""
