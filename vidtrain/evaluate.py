"""Evaluates a checkpoint without training: the same transforms and protocol that it was validated with, or others.

python -m vidtrain.evaluate checkpoint=outputs/motion/NAME eval_clips=4 frame_order_ablations=[shuffled,reversed]
python -m vidtrain.evaluate from_table=outputs/motion/NAME/eval/test_4x3 fusion=vote
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.build.checkpoint_loader import check_fusion, find_checkpoint, open_trained
from vidtrain.errors import UserError
from vidtrain.evaluator.options import CHANGES, USED, as_trained, check
from vidtrain.files.folders import check_writable

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from torch import nn

    from vidtrain.build.checkpoint_loader import LoadedCheckpoint
    from vidtrain.evaluator.run import Pass
    from vidtrain.tracking.console import Console, NullConsole
    from vidtrain.training.ranks.distributed import Ranks


def evaluate(cfg: DictConfig) -> float:
    """The metric that the chosen protocol gives: top-1, or mean average precision where videos have several labels."""
    if cfg.from_table is not None:
        return _report_table(cfg)
    from vidtrain.build.parts import instantiate_component, set_cpu_threads
    from vidtrain.evaluation import view_store
    from vidtrain.evaluator.report import output_folder, publish, write_changes
    from vidtrain.evaluator.run import fill, start_table
    from vidtrain.files.folders import RunLock
    from vidtrain.tracking.console import make_console
    from vidtrain.training.ranks.distributed import join_ranks

    with join_ranks(cfg.device) as ranks, ExitStack() as stack:
        console = make_console(ranks.is_main)
        checkpoint = find_checkpoint(cfg.checkpoint)
        opened = open_trained(checkpoint, cfg.trust_targets, cfg.weights)
        trained = _configure(cfg, opened, checkpoint, console)
        crops, joint = instantiate_component(trained.augmentation.eval).crops, trained.model.fusion == "joint"
        out = output_folder(cfg.out, checkpoint, cfg.split, trained.clip, crops, joint, cfg.weights)
        ranks.on_main(lambda: check_writable(out))
        work = _choose_videos(cfg, trained, opened, checkpoint, ranks, console)
        changes = None
        if cfg.dataset is None and cfg.prepared is None:  # else they are other data, as the user wants
            changes = ranks.on_main(lambda: _compare_with_run(cfg, work, console))

        folder, cpu_threads = out / view_store.FOLDER, trained.trainer.cpu_threads
        ranks.on_main(lambda: stack.enter_context(RunLock(folder)) and None)
        set_cpu_threads(cpu_threads, ranks)
        started_with = ranks.on_main(lambda: start_table(work, folder, cpu_threads, cfg.overwrite, ranks))
        set_cpu_threads(started_with, ranks)

        def make_model() -> "tuple[nn.Module, nn.Module]":
            model = opened.model(trained, ranks)
            return model, opened.transform(trained, model, ranks.device)

        views = fill(work, folder, make_model, ranks, console)

        def write() -> float:
            fusion = cfg.fusion or trained.model.fusion
            report = publish(views, out, f"{checkpoint} on {cfg.split}", console, fusion, work.orders[0])
            write_changes(changes, out)
            console.info(f"tables in {out}, the logits of every view in {folder}")
            return report.metrics["map" if work.manifest.multi_label else "top1"]

        return ranks.on_main(write)


def _configure(
    cfg: DictConfig, opened: "LoadedCheckpoint", checkpoint: Path, console: "Console | NullConsole"
) -> DictConfig:
    """The checkpoint's configuration as the command line changes it, checked."""
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
    console: "Console | NullConsole",
) -> "Pass":
    """What is to be judged: the chosen split in the chosen orders of frames, with the checkpoint's order of classes."""
    from vidtrain.build import data as build_data
    from vidtrain.config.references import settled
    from vidtrain.evaluator.run import Pass, in_order_of_checkpoint

    reading = build_data.reading(trained, ranks, None)
    splits = build_data.manifests(trained, ranks, console)
    if cfg.split not in splits:
        raise UserError(f"split={cfg.split} is not in the dataset; it has {', '.join(splits)}")
    manifest = in_order_of_checkpoint(splits[cfg.split], opened.classes, checkpoint)
    if cfg.fusion == "vote" and manifest.multi_label:
        raise UserError("fusion=vote is for one label a video; choose one of mean_logits, mean_probs")
    orders = tuple(dict.fromkeys((trained.clip.frame_order, *cfg.frame_order_ablations)))
    return Pass(trained, settled(trained), checkpoint, cfg.weights, cfg.split, manifest, reading, orders)


def _compare_with_run(cfg: DictConfig, work: "Pass", console: "Console | NullConsole") -> "dict | None":
    """What differs from when the run of the checkpoint was started, if the checkpoint lies in the folder of a run."""
    from vidtrain.runs.data import hold_evaluated

    run = work.source.resolve().parent.parent
    if not (run / "run.json").is_file():
        return None
    return hold_evaluated(run, cfg.split, work.manifest, work.reading.index, cfg.allow_changed, console)


def _report_table(cfg: DictConfig) -> float:
    """Another protocol of a stored table: no video and no model is opened."""
    from vidtrain.evaluator.report import republish
    from vidtrain.tracking.console import make_console

    out = Path(cfg.out) if cfg.out else None
    console = make_console(is_main=True)
    return republish(
        Path(cfg.from_table), out, cfg.fusion, cfg.frame_order, cfg.eval_clips, cfg.crops, console
    )


def main() -> None:
    launch("evaluate", evaluate, check)


if __name__ == "__main__":
    main()
