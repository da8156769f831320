"""Computes the views of a checkpoint: the settings that the command line may change, their checks, and the view table.

This module imports torch only when views are computed, so that a mistake is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.app.launch import report as report_faults
from vidtrain.build.checkpoint_loader import (
    LoadedCheckpoint,
    changed_config,
    check_checkpoint,
    check_fusion,
    find_checkpoint,
    open_trained,
    run_of,
)
from vidtrain.config.references import fingerprints, settled
from vidtrain.config.renames import LATER_DEFAULTS
from vidtrain.config.schemas import CalibrateConfig, EvaluateConfig
from vidtrain.config.targets import check_settings, check_targets
from vidtrain.errors import UserError
from vidtrain.files.folders import RunLock, check_inside, check_links, check_writable

if TYPE_CHECKING:
    from torch import nn

    from vidtrain.evaluation.view_store import StoredViews
    from vidtrain.evaluation.views import ClipModel
    from vidtrain.evaluator.run import EvaluationPlan
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.run import Console

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
# Options that may be set with from_table; a stored table has fixed values of all others
TABLE_OPTIONS = ("from_table", "out", "eval_clips", "crops", "fusion", "frame_order", "num_workers", "cpu_threads",
                 "device", "calibrated")  # fmt: skip
# Further such options of calibration
CALIBRATION_OPTIONS = ("checkpoint", "split", "method", "min_precision", "min_recall", "set_coverage", "by_class",
                       "remove")  # fmt: skip
# Clip settings that do not identify a table: two have no effect in evaluation, and `EvaluationPlan.identity` lists the
# orders
EXCLUDED_CLIP_KEYS = ("clip.train_clips", "clip.repeated_augmentation", "clip.frame_order")
VIEWS = "views"  # folder of the view table, inside the folder of the reports


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    """The faults of a configuration of the evaluation or the calibration program."""
    schema = CalibrateConfig if "method" in cfg else EvaluateConfig
    faults = check_targets(cfg) + check_settings(cfg, schema)
    if schema is CalibrateConfig:
        faults += _check_calibration(cfg)
    orders = list(cfg.frame_order_ablations)
    twice = [order for number, order in enumerate(orders) if order in orders[:number]]
    faults += [("frame_order_ablations", f"{order} is listed twice") for order in twice]
    if cfg.from_table is not None:
        defaults = OmegaConf.structured(schema)
        return faults + [
            (key, "cannot be changed in a stored table (from_table); leave it out")
            for key in defaults
            if key not in (*TABLE_OPTIONS, *(CALIBRATION_OPTIONS if schema is CalibrateConfig else ()))
            and cfg[key] != defaults[key]
        ]
    if cfg.checkpoint is None:
        kinds = "a run's folder, a checkpoint, or an exported file; or from_table, the folder of an evaluation"
        return [*faults, ("checkpoint", f"must be given: {kinds}")]
    return faults + check_checkpoint(cfg.checkpoint)


def _check_calibration(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = []
    if cfg.min_precision is not None and cfg.min_recall is not None:
        faults.append(("min_recall", "thresholds are for a precision or for a recall: set one of the two"))
    if cfg.by_class and cfg.set_coverage is None:
        faults.append(("by_class", "has no effect without set_coverage"))
    if cfg.fusion == "vote":
        faults.append(("fusion", "votes have no probabilities that could be calibrated"))
    if cfg.from_table is not None and cfg.checkpoint is not None:
        faults += check_checkpoint(cfg.checkpoint)
    elif cfg.from_table is not None:
        faults.append(("checkpoint", "must be given, too: the checkpoint to calibrate"))
    return faults


def as_trained(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The checkpoint's configuration, changed by the options of the command line. Fusion "vote" needs separate logits
    for each clip, so the model's own fusion "joint" becomes mean_logits."""
    if cfg.fusion != "vote":
        return changed_config(config, cfg, CHANGES)
    trained = changed_config(config, cfg, {key: place for key, place in CHANGES.items() if key != "fusion"})
    if trained.model.fusion == "joint":
        trained.model.fusion = "mean_logits"
    return trained


def view_settings(trained: DictConfig) -> dict[str, Any]:
    """The settings on which views depend, as plain values by dotted key. For settings that refer to the environment
    there is also a hash of their value, which shows a change."""
    settings = {f"clip.{key}": value for key, value in settled(trained.clip).items()}
    settings |= {f"augmentation.eval.{key}": value for key, value in settled(trained.augmentation.eval).items()}
    read = fingerprints(trained, settings)
    for key in EXCLUDED_CLIP_KEYS:
        del settings[key]
    for key, default in LATER_DEFAULTS.items():  # older tables do not have these settings
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


# --- the view table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluatedViews:
    """The view table of a checkpoint, the folder of its reports, and how data changed since training."""

    views: StoredViews
    checkpoint: Path
    card: Mapping[str, Any] | None  # of an exported file
    out: Path
    fusion: str
    changes: dict[str, Any] | None


def compute_views(cfg: DictConfig, ranks: Ranks, console: Console, stack: ExitStack) -> EvaluatedViews:
    """The views of the split that `cfg` names. All ranks compute those that are not stored yet. `stack` holds the lock
    of their folder."""
    from vidtrain.evaluator.run import fill, start_table
    from vidtrain.runs.data import hold_evaluated

    checkpoint = find_checkpoint(cfg.checkpoint)
    opened = open_trained(checkpoint, cfg.trust_targets, cfg.weights)
    trained = _configure(cfg, opened, checkpoint, console)
    out = output_folder(cfg, trained, checkpoint)
    ranks.on_main(lambda: check_writable(out))
    plan = _choose_videos(cfg, trained, opened, checkpoint, ranks, console)
    run, changes = run_of(checkpoint), None
    # The data of the run's own training
    if run is not None and cfg.dataset is None and cfg.prepared is None:
        split, index = plan.manifest, plan.dataset.index
        changes = ranks.on_main(lambda: hold_evaluated(run, cfg.split, split, index, cfg.allow_changed, console))
    ranks.on_main(lambda: stack.enter_context(RunLock(out / VIEWS)) and None)
    start_table(plan, out / VIEWS, trained.trainer.cpu_threads, cfg.overwrite, ranks)

    def make_model() -> tuple[ClipModel, nn.Module]:
        model = opened.model(trained, ranks)
        return model, opened.transform(trained, model, ranks.device)

    views = fill(plan, out / VIEWS, make_model, ranks, console)
    return EvaluatedViews(views, checkpoint, opened.card, out, cfg.fusion or trained.model.fusion, changes)


def _configure(cfg: DictConfig, opened: LoadedCheckpoint, checkpoint: Path, console: Console) -> DictConfig:
    """The checkpoint's configuration with the changes of the command line. Ends the program if it has faults."""
    from vidtrain.app.check import check_run
    from vidtrain.build import data as build_data

    opened.check_computed(USED, CHANGES, cfg)
    trained = as_trained(opened.config, cfg)
    faults = check_run(trained, training=False)
    report_faults([("the checkpoint's configuration, as changed", key, why) for key, why in faults])
    if opened.weights is None:
        check_fusion(opened.config["model"]["fusion"], trained.model.fusion, checkpoint)
    if not cfg.trust_targets:
        build_data.keep_index_here(trained, cfg.data_root is not None, console)
        if cfg.dataset is None:
            build_data.check_made_here(trained, cfg.data_root is not None)
    return trained


def _choose_videos(
    cfg: DictConfig, trained: DictConfig, opened: LoadedCheckpoint, checkpoint: Path, ranks: Ranks, console: Console
) -> EvaluationPlan:
    """The chosen split and frame orders, with classes in the order of the checkpoint."""
    from vidtrain.build import data as build_data
    from vidtrain.build import parts as build
    from vidtrain.evaluator.run import EvaluationPlan, in_order_of_checkpoint

    reading = build_data.reading(trained, ranks, None)
    splits = build_data.manifests(trained, ranks, console)
    if cfg.split not in splits:
        raise UserError(f"split={cfg.split} is not in the dataset; it has {', '.join(splits)}")
    manifest = in_order_of_checkpoint(splits[cfg.split], opened.classes, checkpoint)
    if cfg.fusion == "vote" and manifest.multi_label:
        raise UserError("fusion=vote is only for videos with one label; choose mean_logits or mean_probs")
    dataset = build_data.eval_dataset(trained, cfg.split, manifest, reading)
    orders = tuple(dict.fromkeys((trained.clip.frame_order, *cfg.frame_order_ablations)))
    return EvaluationPlan(
        source=checkpoint,
        weights=cfg.weights,
        dataset_name=trained.dataset.name,
        prepared=trained.data.prepared,
        split=cfg.split,
        dataset=dataset,
        orders=orders,
        frames={order: build.frames_text(trained, order) for order in orders},
        settings=view_settings(trained),
        crops=build.instantiate_component(trained.augmentation.eval).crops,
        fusion=trained.model.fusion,
        independent=build.instantiate_component(trained.loss).independent,
        shard=build_data.eval_shard(trained, dataset, ranks),
        precision=trained.trainer.precision,
        num_workers=build.num_workers(trained.trainer.num_workers, ranks),
        decode_timeout_s=trained.data.decode_timeout_s,
    )
