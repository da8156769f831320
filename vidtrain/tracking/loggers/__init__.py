"""W&B, TensorBoard and MLflow: numbers, pictures and checkpoints of a run go in, and nothing comes back.

Read logger.py first.

logger.py              what a logger must offer
mlflow_logger.py       MLflow
process.py             hands every call to another process, where the logger runs: training is never held up
tensorboard_logger.py  TensorBoard
wandb_logger.py        W&B
"""
