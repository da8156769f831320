"""From a command line to the views of a checkpoint: its configuration as changed, its videos, and the table of both."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from vidtrain.app.check import check_run
from vidtrain.app.launch import report as report_faults
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.build.checkpoint_loader import LoadedCheckpoint, check_fusion, find_checkpoint, open_trained, run_of
from vidtrain.errors import UserError
from vidtrain.evaluation.view_store import StoredViews
from vidtrain.evaluation.views import ClipModel
from vidtrain.evaluator.options import CHANGES, USED, VIEWS, as_trained, output_folder, view_settings
from vidtrain.evaluator.run import Pass, fill, in_order_of_checkpoint, start_table
from vidtrain.files.folders import RunLock, check_writable
from vidtrain.runs.data import hold_evaluated
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import Console


@dataclass(frozen=True)
class Judged:
    """The views of what was to be judged, the folder for tables of them, and how data changed since training."""

    views: StoredViews
    checkpoint: Path
    card: Mapping[str, Any] | None  # of an exported file
    out: Path
    fusion: str
    changes: dict[str, Any] | None


def judge(cfg: DictConfig, ranks: Ranks, console: Console, stack: ExitStack) -> Judged:
    """The views of the split that `cfg` names, by all ranks: computed as far as they are not stored. `stack` holds
    their folder for this process."""

    checkpoint = find_checkpoint(cfg.checkpoint)
    opened = open_trained(checkpoint, cfg.trust_targets, cfg.weights)
    trained = _configure(cfg, opened, checkpoint, console)
    out = output_folder(cfg, trained, checkpoint)
    ranks.on_main(lambda: check_writable(out))
    work = _choose_videos(cfg, trained, opened, checkpoint, ranks, console)
    run, changes = run_of(checkpoint), None
    # The data of the run's own training
    if run is not None and cfg.dataset is None and cfg.prepared is None:
        split, index = work.manifest, work.dataset.index
        changes = ranks.on_main(lambda: hold_evaluated(run, cfg.split, split, index, cfg.allow_changed, console))
    ranks.on_main(lambda: stack.enter_context(RunLock(out / VIEWS)) and None)
    start_table(work, out / VIEWS, trained.trainer.cpu_threads, cfg.overwrite, ranks)

    def make_model() -> tuple[ClipModel, nn.Module]:
        model = opened.model(trained, ranks)
        return model, opened.transform(trained, model, ranks.device)

    views = fill(work, out / VIEWS, make_model, ranks, console)
    return Judged(views, checkpoint, opened.card, out, cfg.fusion or trained.model.fusion, changes)


def _configure(cfg: DictConfig, opened: LoadedCheckpoint, checkpoint: Path, console: Console) -> DictConfig:
    """The checkpoint's configuration with the changes of the command line, checked."""
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
) -> Pass:
    """The evaluation to make: the chosen split and frame orders, with classes in the order of the checkpoint."""
    reading = build_data.reading(trained, ranks, None)
    splits = build_data.manifests(trained, ranks, console)
    if cfg.split not in splits:
        raise UserError(f"split={cfg.split} is not in the dataset; it has {', '.join(splits)}")
    manifest = in_order_of_checkpoint(splits[cfg.split], opened.classes, checkpoint)
    if cfg.fusion == "vote" and manifest.multi_label:
        raise UserError("fusion=vote is only for videos with one label; choose mean_logits or mean_probs")
    dataset = build_data.eval_dataset(trained, cfg.split, manifest, reading)
    orders = tuple(dict.fromkeys((trained.clip.frame_order, *cfg.frame_order_ablations)))
    return Pass(
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
