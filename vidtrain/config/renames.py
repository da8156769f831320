"""What has another name since: components and keys, as earlier versions stored them and users may still write."""

import re
from collections.abc import Mapping
from typing import Any

TARGETS = {
    "vidtrain.data.temporal.TemporalJitter": "vidtrain.data.sampling.temporal.TemporalJitter",
    **{
        f"vidtrain.tracking.{module}": f"vidtrain.tracking.loggers.{name.lower()}_logger.{name}Logger"
        for name in ("Wandb", "TensorBoard", "Mlflow")
        for module in (f"{name.lower()}_mirror.{name}Mirror", f"loggers.{name.lower()}_logger.{name}Mirror")
    },
    "vidtrain.launching.LocalLauncher": "vidtrain.sweeps.submitit_launchers.LocalLauncher",
    "vidtrain.launching.SlurmLauncher": "vidtrain.sweeps.submitit_launchers.SlurmLauncher",
    "vidtrain.sweep_grid.GridSweeper": "vidtrain.sweeps.grid.GridSweeper",
    "vidtrain.sweep_optuna.OptunaSweeper": "vidtrain.sweeps.optuna_sweeper.OptunaSweeper",
}
KEYS = {"trainer.label_smoothing": "loss.label_smoothing"}


def rename_targets(node: Any) -> Any:
    """Plain data with every `_target_` by the name that it has now."""
    if isinstance(node, Mapping):
        renamed = {key: rename_targets(value) for key, value in node.items()}
        if "_target_" in renamed and isinstance(renamed["_target_"], str):
            renamed["_target_"] = rename_target(renamed["_target_"])
        return renamed
    return [rename_targets(value) for value in node] if isinstance(node, list | tuple) else node


def rename_target(target: str) -> str:
    return TARGETS[target] if target in TARGETS else target


def rename_override(override: str) -> str:
    """A stored override as it is written now; of before there could be several loggers, its key was logger.KEY."""
    key, equals, value = override.partition("=")
    if key.endswith("._target_"):
        return f"{key}{equals}{rename_target(value)}"
    found = re.match(r"\+*logger\.(mode|project|entity|group|job_type|tags|notes)$", key)
    return override.replace("logger.", "logger.wandb.", 1) if found else override
