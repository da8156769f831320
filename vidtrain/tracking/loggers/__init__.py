"""W&B, TensorBoard and MLflow: numbers, pictures and checkpoints of a run go in, and nothing comes back.

Read logger.py first.

logger.py              what a logger must offer
mlflow_logger.py       MLflow
process.py             in the training process: hands every call over, and can never be stopped, slowed or hung
service.py             the other process, in which a logger runs
tensorboard_logger.py  TensorBoard
wandb_logger.py        W&B
"""
