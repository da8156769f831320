"""Configurations as the command line composes them."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vidtrain.config.targets import CONF, register_schemas

register_schemas()


def config_of(program: str, *overrides: str) -> DictConfig:
    """The configuration of a program, or of another file of conf/, with overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, list(overrides))
