"""The settings of an evaluated checkpoint that the command line may change, and checks of them.

This module does not import torch, so that a mistake is reported at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.build.checkpoint_loader import changed_config, check_checkpoint
from vidtrain.config.references import fingerprints, settled
from vidtrain.config.renames import LATER
from vidtrain.config.schemas import CalibrateConfig, EvaluateConfig
from vidtrain.config.targets import check_settings, check_targets
from vidtrain.files.folders import check_inside, check_links

# Option of the program -> key in the checkpoint's configuration that it sets
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
# Keys of that configuration that evaluation uses
USED = ("seed", "data_root", "clip", "data", "dataset", "augmentation", "model", "loss",
        "trainer.eval_batch_size", "trainer.max_eval_videos", "trainer.precision")  # fmt: skip
# Options that may be set together with from_table; all others are fixed when the table is computed
TABLE_OPTIONS = ("from_table", "out", "eval_clips", "crops", "fusion", "frame_order", "num_workers", "cpu_threads",
                 "device", "calibrated")  # fmt: skip
# And those that calibration adds to them
CALIBRATING = ("checkpoint", "split", "method", "min_precision", "min_recall", "set_coverage", "by_class",
               "remove")  # fmt: skip
# Clip settings that do not identify a table: two have no effect in evaluation, and `Pass.identity` lists the orders
NOT_OF_VIEWS = ("clip.train_clips", "clip.repeated_augmentation", "clip.frame_order")
VIEWS = "views"  # folder of the view table, inside the folder of the reports


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    """The faults of evaluating, or of calibrating."""
    schema = CalibrateConfig if "method" in cfg else EvaluateConfig
    faults = check_targets(cfg) + check_settings(cfg, schema)
    if schema is CalibrateConfig:
        faults += _check_calibrating(cfg)
    orders = list(cfg.frame_order_ablations)
    twice = [order for number, order in enumerate(orders) if order in orders[:number]]
    faults += [("frame_order_ablations", f"{order} is listed twice") for order in twice]
    if cfg.from_table is not None:
        defaults = OmegaConf.structured(schema)
        return faults + [
            (key, "cannot be changed in a stored table (from_table); leave it out")
            for key in defaults
            if key not in (*TABLE_OPTIONS, *(CALIBRATING if schema is CalibrateConfig else ()))
            and cfg[key] != defaults[key]
        ]
    if cfg.checkpoint is None:
        kinds = "a run's folder, a checkpoint, or an exported file; or from_table, the folder of an evaluation"
        return [*faults, ("checkpoint", f"must be given: {kinds}")]
    return faults + check_checkpoint(cfg.checkpoint)


def _check_calibrating(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = []
    if cfg.min_precision is not None and cfg.min_recall is not None:
        faults.append(("min_recall", "thresholds are of a precision or of a recall: leave one out"))
    if cfg.by_class and cfg.set_coverage is None:
        faults.append(("by_class", "has no effect without set_coverage"))
    if cfg.fusion == "vote":
        faults.append(("fusion", "votes have no probabilities to be calibrated"))
    if cfg.from_table is not None and cfg.checkpoint is not None:
        faults += check_checkpoint(cfg.checkpoint)
    elif cfg.from_table is not None:
        faults.append(("checkpoint", "must be given too: the one that is calibrated"))
    return faults


def as_trained(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The checkpoint's configuration, changed by the options of the command line. The model itself has no fusion
    "vote", which needs separate logits for each clip: so joint becomes mean_logits."""
    if cfg.fusion != "vote":
        return changed_config(config, cfg, CHANGES)
    trained = changed_config(config, cfg, {key: place for key, place in CHANGES.items() if key != "fusion"})
    if trained.model.fusion == "joint":
        trained.model.fusion = "mean_logits"
    return trained


def view_settings(trained: DictConfig) -> dict[str, Any]:
    """The settings on which views depend, as plain values by dotted key. Settings that refer to the environment are
    included with a hash of their value, so that a change is noticed."""
    settings = {f"clip.{key}": value for key, value in settled(trained.clip).items()}
    settings |= {f"augmentation.eval.{key}": value for key, value in settled(trained.augmentation.eval).items()}
    read = fingerprints(trained, settings)
    for key in NOT_OF_VIEWS:
        del settings[key]
    for key, default in LATER.items():  # older tables do not have these settings
        if settings[f"clip.{key}"] == default:
            del settings[f"clip.{key}"]
    return settings | ({"read in the environment": read} if read else {})


def output_folder(cfg: DictConfig, trained: DictConfig, checkpoint: Path) -> Path:
    """The folder for the tables of an evaluation: `out`, or one in the run's folder, with a name for the views. Raises
    `UserError` if a link leads out of the run's folder."""
    from vidtrain.build.parts import instantiate_component

    crops = instantiate_component(trained.augmentation.eval).crops
    order, run = trained.clip.frame_order, checkpoint.resolve().parents[1]
    parts = (
        cfg.split,
        f"{trained.clip.eval_clips}x{crops}",
        "joint" if trained.model.fusion == "joint" else "",
        "" if order == "forward" else order,
        "" if checkpoint.stem == "best" else checkpoint.stem,
        cfg.weights or "",
    )
    out = Path(cfg.out or run / "eval" / "_".join(part for part in parts if part))
    if cfg.out is None:
        check_inside(out, run)
    check_links(out / VIEWS, below=True)
    return out
