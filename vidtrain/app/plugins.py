"""Our sweepers and launchers as Hydra's, and what must hold before a sweep starts.

Hydra takes only classes of packages hydra_plugins.*; here `hydra.sweeper._target_` and `hydra.launcher._target_` may
name one of vidtrain: hydra/sweeper=grid and optuna, hydra/launcher=slurm and local.
"""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import InstantiationException
from hydra.types import HydraContext, RunMode, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

from vidtrain.config.targets import reason
from vidtrain.files.folders import install_hint
from vidtrain.training.ranks.rendezvous import find_place

OURS = "vidtrain."
LAUNCHER = "hydra/launcher"


def use_own_plugins() -> None:
    plugins = Plugins.instance()
    for kind in ("sweeper", "launcher"):
        setattr(plugins, f"instantiate_{kind}", _Instantiate(kind))
    # hydra-optuna-sweeper, where it is installed, has schemas of names that are ours too, and would be merged with them
    for name in ("optuna.yaml", "sampler"):
        ConfigStore.instance().repo["hydra"]["sweeper"].pop(name, None)


class _Instantiate:
    """In place of a method of Hydra's plugins, which it calls for all targets but ours. `kind` is sweeper, launcher."""

    def __init__(self, kind: str):
        self._kind = kind

    def __call__(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> Any:
        where = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        node = config.hydra[self._kind]
        if not node._target_.startswith(OURS):
            return getattr(Plugins, f"instantiate_{self._kind}")(Plugins.instance(), **where)
        try:
            plugin = instantiate(node, _recursive_=False)
        except InstantiationException as error:
            from vidtrain.app.launch import fail  # it imports this module

            fail(f"hydra/{self._kind}: {reason(error)}")
        plugin.setup(**where)
        return plugin


def is_trial(context: HydraConf) -> bool:
    """Whether the running job is a trial of one of our sweepers."""
    return context.mode == RunMode.MULTIRUN and context.sweeper._target_.startswith(OURS)


def sweep_faults(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Why no sweep can be launched from here, as (key, what is wrong)."""
    faults = []
    here = find_place()
    if here.world_size > 1:
        program = {"torchrun": "torchrun", "slurm": "srun"}[here.launcher]
        why = (
            f"{program} has started {here.world_size} processes, and each would start the whole sweep. Start it "
            f"without {program}: {LAUNCHER}=slurm or {LAUNCHER}=local gives each run its processes"
        )
        faults.append(("-m", why))
    named = [override.partition("=")[2] for override in overrides if override.startswith(f"{LAUNCHER}=")]
    launcher = named[-1] if named else None
    if launcher in ("slurm", "local") and (
        find_spec("submitit") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None
    ):
        faults.append((LAUNCHER, f"{launcher} needs submitit: {install_hint('slurm')}"))
    if launcher == "slurm" and shutil.which("sbatch") is None:
        why = f"there is no SLURM here (no sbatch): start the sweep on a login node, or {LAUNCHER}=local"
        faults.append((LAUNCHER, why))
    return faults
