"""Evaluates a checkpoint without training, with the transforms and protocol of its validation, or with others.

python -m vidtrain.evaluate checkpoint=outputs/motion/NAME eval_clips=4 frame_order_ablations=[shuffled,reversed]
python -m vidtrain.evaluate from_table=outputs/motion/NAME/eval/test_4x3 fusion=vote
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.build.checkpoint_loader import check_fusion, find_checkpoint, open_trained, run_of
from vidtrain.errors import UserError
from vidtrain.evaluator.options import CHANGES, USED, VIEWS, as_trained, check, output_folder, view_settings
from vidtrain.files.folders import check_writable

if TYPE_CHECKING:  # so that --help does not wait seconds for the import of torch
    from torch import nn

    from vidtrain.build.checkpoint_loader import LoadedCheckpoint
    from vidtrain.evaluation.views import ClipModel
    from vidtrain.evaluator.run import Pass
    from vidtrain.training.ranks.distributed import Ranks
    from vidtrain.training.run import Console


def evaluate(cfg: DictConfig) -> float:
    """Evaluates, and returns top-1 of the chosen protocol, or mean average precision if videos have several labels."""
    from vidtrain.evaluation.protocols import headline
    from vidtrain.evaluator.report import publish, republish
    from vidtrain.evaluator.run import fill, start_table
    from vidtrain.files.atomic import write_json_atomic
    from vidtrain.files.folders import RunLock
    from vidtrain.runs.data import hold_evaluated
    from vidtrain.tracking.console import make_console
    from vidtrain.training.ranks.distributed import join_ranks

    if cfg.from_table is not None:  # no video and no model is opened
        out, console = Path(cfg.out) if cfg.out else None, make_console(is_main=True)
        chosen = (cfg.fusion, cfg.frame_order, cfg.eval_clips, cfg.crops)
        return republish(Path(cfg.from_table), out, *chosen, console)
    with join_ranks(cfg.device) as ranks, ExitStack() as stack:
        console, checkpoint = make_console(ranks.is_main), find_checkpoint(cfg.checkpoint)
        opened = open_trained(checkpoint, cfg.trust_targets, cfg.weights)
        trained = _configure(cfg, opened, checkpoint, console)
        out = output_folder(cfg, trained, checkpoint)
        ranks.on_main(lambda: check_writable(out))
        work = _choose_videos(cfg, trained, opened, checkpoint, ranks, console)
        run, changes = run_of(checkpoint), None
        # The data of the run's own training
        if run is not None and cfg.dataset is None and cfg.prepared is None:
            split, index = work.manifest, work.dataset.index
            changes = ranks.on_main(
                lambda: hold_evaluated(run, cfg.split, split, index, cfg.allow_changed, console)
            )
        ranks.on_main(lambda: stack.enter_context(RunLock(out / VIEWS)) and None)
        start_table(work, out / VIEWS, trained.trainer.cpu_threads, cfg.overwrite, ranks)

        def make_model() -> "tuple[ClipModel, nn.Module]":
            model = opened.model(trained, ranks)
            return model, opened.transform(trained, model, ranks.device)

        views = fill(work, out / VIEWS, make_model, ranks, console)

        def write() -> float:
            fusion = cfg.fusion or trained.model.fusion
            report = publish(views, out, f"{checkpoint} on {cfg.split}", console, fusion, work.orders[0])
            if changes is None:
                (out / "data_changes.json").unlink(missing_ok=True)
            else:  # the data have changed since the run was started
                write_json_atomic(out / "data_changes.json", changes)
            console.info(f"tables in {out}, the logits of every view in {out / VIEWS}")
            return report.metrics[headline(work.manifest.multi_label)]

        return ranks.on_main(write)


def _configure(
    cfg: DictConfig, opened: "LoadedCheckpoint", checkpoint: Path, console: "Console"
) -> DictConfig:
    """The checkpoint's configuration with the changes of the command line, checked."""
    from vidtrain.app.check import check_run
    from vidtrain.app.launch import report as report_faults
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
    cfg: DictConfig,
    trained: DictConfig,
    opened: "LoadedCheckpoint",
    checkpoint: Path,
    ranks: "Ranks",
    console: "Console",
) -> "Pass":
    """The evaluation to make: the chosen split and frame orders, with classes in the order of the checkpoint."""
    from vidtrain.build import data as build_data
    from vidtrain.build import parts as build
    from vidtrain.evaluator.run import Pass, in_order_of_checkpoint

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


def main() -> None:
    launch("evaluate", evaluate, check)


if __name__ == "__main__":
    main()
