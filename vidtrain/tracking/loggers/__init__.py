"""W&B, TensorBoard and MLflow: they receive metrics, images and checkpoints of a run.

Read logger.py first.

logger.py              the interface of a logger
mlflow_logger.py       MLflow
process.py             runs each logger in another process, so that it can never delay or stop training
tensorboard_logger.py  TensorBoard
wandb_logger.py        W&B
"""
