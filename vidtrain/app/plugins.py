"""Makes vidtrain's sweepers and launchers available to Hydra, and checks that a sweep can start.

Hydra itself accepts only classes in packages hydra_plugins.*. Here `hydra.sweeper._target_` and
`hydra.launcher._target_` may also name classes of vidtrain: hydra/sweeper=grid and optuna, hydra/launcher=slurm and
local.
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
from vidtrain.training.rendezvous import find_place

OURS = "vidtrain."
LAUNCHER = "hydra/launcher"


def use_own_plugins() -> None:
    plugins = Plugins.instance()
    for kind in ("sweeper", "launcher"):
        setattr(plugins, f"instantiate_{kind}", _Instantiate(kind))
    # If hydra-optuna-sweeper is installed, Hydra would merge its schemas into our options of the same names
    for name in ("optuna.yaml", "sampler"):
        ConfigStore.instance().repo["hydra"]["sweeper"].pop(name, None)


class _Instantiate:
    """Replaces a method of Hydra's `Plugins`, and calls it for all targets except vidtrain's.

    `kind` is sweeper or launcher."""

    def __init__(self, kind: str):
        self._kind = kind

    def __call__(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Any:
        arguments = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        node = config.hydra[self._kind]
        if not node._target_.startswith(OURS):
            return getattr(Plugins, f"instantiate_{self._kind}")(Plugins.instance(), **arguments)
        try:
            plugin = instantiate(node, _recursive_=False)
        except InstantiationException as error:
            from vidtrain.app.launch import fail  # here, as launch.py imports this module

            fail(f"hydra/{self._kind}: {reason(error)}")
        plugin.setup(**arguments)
        return plugin


def is_trial(context: HydraConf) -> bool:
    """Whether the running job is a trial of one of vidtrain's sweepers."""
    return context.mode == RunMode.MULTIRUN and context.sweeper._target_.startswith(OURS)


def sweep_faults(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Reasons why a sweep cannot be started from this process, as (key, what is wrong)."""
    faults = []
    place = find_place()
    if place.world_size > 1:
        program = {"torchrun": "torchrun", "slurm": "srun"}[place.launcher]
        why = (
            f"{program} has started {place.world_size} processes, and each would start the whole sweep. Start it "
            f"without {program}: {LAUNCHER}=slurm or {LAUNCHER}=local gives each run its processes"
        )
        faults.append(("-m", why))
    launchers = [override.partition("=")[2] for override in overrides if override.startswith(f"{LAUNCHER}=")]
    launcher = launchers[-1] if launchers else None
    if launcher in ("slurm", "local") and (
        find_spec("submitit") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None
    ):
        faults.append((LAUNCHER, f"{launcher} needs submitit: {install_hint('slurm')}"))
    if launcher == "slurm" and shutil.which("sbatch") is None:
        why = f"there is no SLURM here (no sbatch): start the sweep on a login node, or {LAUNCHER}=local"
        faults.append((LAUNCHER, why))
    return faults
