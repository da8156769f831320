"""Our launchers as Hydra's: hydra/launcher=slurm and local; and what must hold before a sweep starts."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

from vidtrain.files.folders import install_hint
from vidtrain.training.ranks.rendezvous import find_place

OURS = "vidtrain."
GROUP = "hydra/launcher"


def use_own_launchers() -> None:
    """Lets `hydra.launcher._target_` name a class of vidtrain: Hydra takes only those of packages hydra_plugins.*"""
    Plugins.instance().instantiate_launcher = instantiate_launcher


def instantiate_launcher(
    hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> Launcher:
    """In place of the method of Hydra's plugins, which it calls for all targets but ours."""
    if not config.hydra.launcher._target_.startswith(OURS):
        return Plugins.instantiate_launcher(Plugins.instance(), hydra_context, task_function, config)
    launcher = instantiate(config.hydra.launcher, _recursive_=False)
    launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)
    return launcher


def sweep_faults(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Why no sweep can be launched from here, as (key, what is wrong)."""
    faults = []
    here = find_place()
    if here.world_size > 1:
        program = {"torchrun": "torchrun", "slurm": "srun"}[here.launcher]
        faults.append(
            (
                "-m",
                f"{program} has started {here.world_size} processes, and each would start the whole sweep. Start "
                f"it without {program}: {GROUP}=slurm or {GROUP}=local gives each run its processes",
            )
        )
    chosen = [each.partition("=")[2] for each in overrides if each.startswith(f"{GROUP}=")][-1:]
    if chosen and chosen[0] in ("slurm", "local"):
        if find_spec("submitit") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            faults.append((GROUP, f"{chosen[0]} needs submitit: {install_hint('slurm')}"))
        if chosen[0] == "slurm" and shutil.which("sbatch") is None:
            faults.append(
                (
                    GROUP,
                    f"there is no SLURM here (no sbatch): start the sweep on a login node, or {GROUP}=local",
                )
            )
    return faults
