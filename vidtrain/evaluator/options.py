"""What the command line may change of a checkpoint that is evaluated, and what is wrong with it.

Imports no torch, so that a mistake is answered at once.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.build.checkpoint_loader import find_checkpoint
from vidtrain.config.migration import migrate
from vidtrain.config.schemas import EvaluateConfig
from vidtrain.config.targets import check_targets, suggest
from vidtrain.data.sampling.temporal import FRAME_ORDERS, SHORT_POLICIES
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
CHOICES = {
    "weights": ("raw", "ema"),
    "frame_order": FRAME_ORDERS,
    "short_video_policy": SHORT_POLICIES,
    "fusion": ("mean_logits", "mean_probs", "joint", "vote"),
}
LEAST = {"eval_clips": 1, "crops": 1, "batch_size": 1, "num_workers": 0, "cpu_threads": 1}


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg)
    for key, known in CHOICES.items():
        if cfg[key] is not None and cfg[key] not in known:
            faults.append((key, f"{cfg[key]} is unknown{suggest(cfg[key], list(known))}"))
    for number, order in enumerate(cfg.frame_order_ablations):
        if order not in FRAME_ORDERS:
            faults.append(
                ("frame_order_ablations", f"{order} is unknown{suggest(order, list(FRAME_ORDERS))}")
            )
        elif order in cfg.frame_order_ablations[:number]:
            faults.append(("frame_order_ablations", f"{order} is listed twice"))
    for key, least in LEAST.items():
        if cfg[key] is not None and cfg[key] < least:
            faults.append((key, f"{cfg[key]} must be {least} or more"))
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
