"""W&B, TensorBoard and MLflow, each in a process of its own that can never stop, slow or hang training.

Read logger.py first.

logger.py              what a tracker must offer
channel.py             messages between the two
mlflow_logger.py       MLflow
process.py             a tracker in a process of its own, which can never stop, slow or hang training
service.py             what runs there
several.py             several trackers at once
tensorboard_logger.py  TensorBoard
wandb_logger.py        W&B
"""
