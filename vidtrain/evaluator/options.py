"""What the command line may change of a checkpoint that is evaluated, and what is wrong with it.

Imports no torch, so that a mistake is answered at once.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.build.checkpoint_loader import find_checkpoint
from vidtrain.config.renames import migrate
from vidtrain.config.schemas import EvaluateConfig
from vidtrain.config.targets import check_settings, check_targets
from vidtrain.errors import UserError

# The program's option -> where the value stands in the configuration that the checkpoint carries
CHANGES = {
    "data_root": "data_root",
    "dataset": "dataset",
    "prepared": "data.prepared",
    "eval_clips": "clip.eval_clips",
    "frame_order": "clip.frame_order",
    "short_video_policy": "clip.short_video_policy",
    "max_pixels": "data.max_pixels",
    "crops": "augmentation.eval.crops",
    "fusion": "model.fusion",
    "batch_size": "trainer.eval_batch_size",
    "num_workers": "trainer.num_workers",
    "cpu_threads": "trainer.cpu_threads",
    "precision": "trainer.precision",
}
# What evaluating uses of that configuration
USED = ("seed", "data_root", "clip", "data", "dataset", "augmentation", "model", "loss",
        "trainer.eval_batch_size", "trainer.max_eval_videos", "trainer.precision")  # fmt: skip
# Options that a stored table is read with; all others are settled when the table is made
TABLE_OPTIONS = ("from_table", "out", "eval_clips", "crops", "fusion", "frame_order", "num_workers", "cpu_threads",
                 "device")  # fmt: skip


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg) + check_settings(cfg, EvaluateConfig)
    orders = list(cfg.frame_order_ablations)
    twice = [order for number, order in enumerate(orders) if order in orders[:number]]
    faults += [("frame_order_ablations", f"{order} is listed twice") for order in twice]
    if cfg.from_table is not None:
        defaults = OmegaConf.structured(EvaluateConfig)
        faults += [
            (key, "cannot be changed in a stored table (from_table); leave it out")
            for key in defaults
            if key not in TABLE_OPTIONS and cfg[key] != defaults[key]
        ]
        return faults
    if cfg.checkpoint is None:
        what = "a run's folder, a checkpoint, or an exported file; or from_table, the folder of an evaluation"
        return [*faults, ("checkpoint", f"must be given: {what}")]
    try:
        find_checkpoint(cfg.checkpoint)
    except UserError as error:
        faults.append(("checkpoint", str(error).removeprefix("checkpoint=")))
    return faults


def as_trained(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The configuration that a checkpoint carries, with what the command line changes of it.

    A vote is not a fusion of the model: it needs clips that are judged one by one.
    """
    trained = migrate(config, f"the checkpoint {cfg.checkpoint}")
    for option, place in CHANGES.items():
        if cfg[option] is not None and not (option == "fusion" and cfg[option] == "vote"):
            OmegaConf.update(trained, place, cfg[option], merge=False)
    if cfg.fusion == "vote" and trained.model.fusion == "joint":
        trained.model.fusion = "mean_logits"
    return trained
