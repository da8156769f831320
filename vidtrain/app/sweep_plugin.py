"""Our sweepers as Hydra's: hydra/sweeper=grid and optuna."""

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

OURS = "vidtrain."


def use_own_sweepers() -> None:
    """Lets `hydra.sweeper._target_` name a class of vidtrain: Hydra takes only those of packages hydra_plugins.*"""
    plugins = Plugins.instance()
    plugins.instantiate_sweeper = instantiate_sweeper
    # hydra-optuna-sweeper, where it is installed, has schemas of names that are ours too, and would be merged with them
    for name in ("optuna.yaml", "sampler"):
        ConfigStore.instance().repo["hydra"]["sweeper"].pop(name, None)


def instantiate_sweeper(
    *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> Sweeper:
    """In place of the method of Hydra's plugins, which it calls for all targets but ours."""
    if not config.hydra.sweeper._target_.startswith(OURS):
        return Plugins.instantiate_sweeper(
            Plugins.instance(), hydra_context=hydra_context, task_function=task_function, config=config
        )
    sweeper = instantiate(config.hydra.sweeper, _recursive_=False)
    sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)
    return sweeper


def is_trial(context: HydraConf) -> bool:
    """Whether the running job is a trial of one of our sweepers."""
    return context.mode == RunMode.MULTIRUN and context.sweeper._target_.startswith(OURS)
