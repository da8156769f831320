"""Train and fine-tune video classifiers: parts that work alone, composed by Hydra."""

__version__ = "0.1.0"
