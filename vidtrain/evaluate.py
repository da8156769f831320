"""Evaluates a checkpoint without training: the same transforms and protocol that it was validated with, or others.

python -m vidtrain.evaluate checkpoint=outputs/motion/NAME eval_clips=4 crops=3 probes=[shuffled,reversed,single_frame]
python -m vidtrain.evaluate from_table=outputs/motion/NAME/eval/test_4x3 fusion=vote
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.app.launch import launch
from vidtrain.build.checkpoint_loader import check_fusion, locate, open_trained
from vidtrain.config.migration import migrate
from vidtrain.config.references import settled
from vidtrain.config.schemas import EvaluateConfig
from vidtrain.config.targets import check_targets, suggest
from vidtrain.data.sampling.policies import FRAME_ORDERS, SHORT_POLICIES
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown
from vidtrain.files.links import check_inside, check_links, writable

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from torch import nn

    from vidtrain.training.ranks.distributed import Ranks

# The program's option -> where the value stands in the configuration that the checkpoint carries
CHANGES = {
    "data_root": "data_root",
    "dataset": "dataset",
    "prepared": "data.prepared",
    "eval_clips": "clip.eval_clips",
    "frame_order": "clip.frame_order",
    "short": "clip.short",
    "max_pixels": "data.max_pixels",
    "crops": "augmentation.eval.crops",
    "fusion": "model.fusion",
    "batch_size": "trainer.eval_batch_size",
    "num_workers": "trainer.num_workers",
    "cpu_threads": "trainer.cpu_threads",
    "precision": "trainer.precision",
}
# What evaluating uses of it
USED = ("seed", "data_root", "clip", "data", "dataset", "augmentation", "model", "loss",
        "trainer.eval_batch_size", "trainer.max_eval_videos", "trainer.precision")  # fmt: skip
# What a table is read with; all else is decided when it is made
OF_TABLES = (
    "from_table",
    "out",
    "eval_clips",
    "crops",
    "fusion",
    "frame_order",
    "num_workers",
    "cpu_threads",
    "device",
)
CHOICES = {
    "weights": ("raw", "ema"),
    "frame_order": FRAME_ORDERS,
    "short": SHORT_POLICIES,
    "fusion": ("mean_logits", "mean_probs", "joint", "vote"),
}


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg)
    for key, known in CHOICES.items():
        if cfg[key] is not None and cfg[key] not in known:
            faults.append((key, f"{cfg[key]} is unknown{suggest(cfg[key], list(known))}"))
    for number, order in enumerate(cfg.probes):
        if order not in FRAME_ORDERS:
            faults.append(("probes", f"{order} is unknown{suggest(order, list(FRAME_ORDERS))}"))
        elif order in cfg.probes[:number]:
            faults.append(("probes", f"{order} stands there twice"))
    for key, least in {
        "eval_clips": 1,
        "crops": 1,
        "batch_size": 1,
        "num_workers": 0,
        "cpu_threads": 1,
    }.items():
        if cfg[key] is not None and cfg[key] < least:
            faults.append((key, f"{cfg[key]} must be {least} or more"))
    if cfg.from_table is not None:
        defaults = OmegaConf.structured(EvaluateConfig)
        faults += [
            (key, "cannot be changed in a table that is made (from_table); leave it out")
            for key in defaults
            if key not in OF_TABLES and cfg[key] != defaults[key]
        ]
        return faults
    if cfg.checkpoint is None:
        what = "a run's folder, a checkpoint, or an exported file; or from_table, the folder of an evaluation"
        return [*faults, ("checkpoint", f"must be given: {what}")]
    try:
        locate(cfg.checkpoint)
    except UserError as error:
        faults.append(("checkpoint", str(error).removeprefix("checkpoint=")))
    return faults


def evaluate(cfg: DictConfig) -> float:
    """The metric that the asked protocol gives: top-1, or mean average precision where videos have several labels."""
    if cfg.from_table is not None:
        return _from_table(cfg)
    from contextlib import ExitStack

    from vidtrain.app.check import check_run
    from vidtrain.app.launch import report as report_faults
    from vidtrain.build import data as build_data
    from vidtrain.build import parts as build
    from vidtrain.data.manifest.class_names import describe_alike
    from vidtrain.data.manifest.manifest import in_order_of
    from vidtrain.evaluation import view_store
    from vidtrain.evaluator.report import publish
    from vidtrain.evaluator.run import Pass, fill
    from vidtrain.files.lock import RunLock
    from vidtrain.tracking.console import make_console
    from vidtrain.training.ranks.distributed import join_ranks

    with join_ranks(cfg.device) as ranks, ExitStack() as held:
        console = make_console(ranks.is_main)
        path = locate(cfg.checkpoint)
        opened = open_trained(path, cfg.trust_targets, cfg.weights)
        opened.check_computed(USED, CHANGES, cfg)
        trained = as_trained(opened.config, cfg)
        found = check_run(trained, training=False)
        report_faults([("the checkpoint's configuration, as changed", key, why) for key, why in found])
        if opened.weights is None:
            check_fusion(opened.config["model"]["fusion"], trained.model.fusion, path)
        if not cfg.trust_targets:
            build_data.keep_index_here(trained, cfg.data_root is not None, console)
            if cfg.dataset is None:
                build_data.check_made_here(trained, cfg.data_root is not None)
        home = path.resolve().parents[1]
        out = Path(cfg.out or home / "eval" / _name(cfg, trained, path))
        if cfg.out is None:
            check_inside(out, home)
        check_links(out / view_store.FOLDER, below=True)
        ranks.on_main(lambda: writable(out))
        reading = build_data.reading(trained, ranks, None)
        splits = build_data.manifests(trained, ranks, console)
        if cfg.split not in splits:
            raise UserError(f"split={cfg.split} is not in the dataset; it has {', '.join(splits)}")
        manifest = splits[cfg.split]
        if sorted(manifest.classes) == sorted(opened.classes):
            manifest = in_order_of(manifest, opened.classes)
        else:
            differing = sorted(set(manifest.classes) ^ set(opened.classes))
            raise UserError(
                f"the checkpoint {path} tells other classes apart than the dataset has: "
                f"{len(opened.classes)} and {len(manifest.classes)}; differing: {', '.join(map(shown, differing[:8]))}"
                + describe_alike(manifest.classes, opened.classes)
            )
        changes = None
        if cfg.dataset is None and cfg.prepared is None:  # else they are other data, as asked
            changes = ranks.on_main(lambda: _held(path, cfg, manifest, reading, console))
        if cfg.fusion == "vote" and manifest.multi_label:
            raise UserError("fusion=vote is for one label a video; choose one of mean_logits, mean_probs")
        orders = tuple(dict.fromkeys((trained.clip.frame_order, *cfg.probes)))
        settings = settled(trained)
        work = Pass(trained, settings, path, cfg.weights, cfg.split, manifest, reading, orders)
        folder = out / view_store.FOLDER
        ranks.on_main(lambda: held.enter_context(RunLock(folder)) and None)
        build.set_cpu_threads(trained.trainer.cpu_threads, ranks)
        build.set_cpu_threads(ranks.on_main(lambda: _begin(work, folder, cfg, ranks)), ranks)

        def make_model() -> tuple["nn.Module", "nn.Module"]:
            model = opened.model(trained, ranks)
            return model, opened.transform(trained, model, ranks.device)

        views = fill(work, folder, make_model, ranks, console)
        fusion = cfg.fusion or trained.model.fusion

        def close() -> float:
            report = publish(views, out, f"{path} on {cfg.split}", console, fusion, orders[0])
            _note_changes(changes, out)
            console.info(f"tables in {out}, the logits of every view in {folder}")
            return report.metrics["map" if manifest.multi_label else "top1"]

        return ranks.on_main(close)


def _held(checkpoint: Path, cfg: DictConfig, manifest: Any, reading: Any, console: Any) -> Any:
    """What differs from when the run of the checkpoint was started, if it lies in the folder of one."""
    from vidtrain.runs import data as run_data

    run = checkpoint.resolve().parent.parent
    if not (run / "run.json").is_file():
        return None
    return run_data.hold_evaluated(run, cfg.split, manifest, reading.index, cfg.allow_changed, console)


def _note_changes(changes: Mapping[str, Any] | None, out: Path) -> None:
    """data_changes.json beside the tables, where they are of other data than the run was started with."""
    from vidtrain.files.atomic import write_json_atomic

    if changes is None:
        (out / "data_changes.json").unlink(missing_ok=True)
    else:
        write_json_atomic(out / "data_changes.json", changes)


def _begin(work: Any, folder: Path, cfg: DictConfig, ranks: "Ranks") -> int:
    import torch

    from vidtrain.evaluation import view_store

    identity, asked = work.identity(ranks.device), work.cfg.trainer.cpu_threads
    return view_store.begin(folder, identity, asked, torch.get_num_threads(), cfg.overwrite)


def _from_table(cfg: DictConfig) -> float:
    """Another protocol of a table that is there: no video and no model is opened."""
    from vidtrain.evaluation import view_store
    from vidtrain.evaluator.report import publish
    from vidtrain.tracking.console import make_console

    console = make_console(is_main=True)
    views = view_store.open_views(Path(cfg.from_table))
    about = views.about
    fusion, order = cfg.fusion or about["fusion"], cfg.frame_order or about["orders"][0]
    out = Path(cfg.out) if cfg.out else views.folder.parent
    if cfg.out is None and (asked := _asked(cfg, about, fusion, order)):
        out = out.with_name(
            f"{out.name}_as_{asked}"
        )  # the report that lies there is of the table's own protocol
    writable(out)
    title = f"{views.folder}, the {about['split']} split of {about['dataset']}"
    found = publish(views, out, title, console, fusion, order, cfg.eval_clips, cfg.crops)
    console.info(f"tables in {out}")
    return found.metrics["map" if views.labels.ndim == 2 else "top1"]


def _asked(cfg: DictConfig, about: Mapping[str, Any], fusion: str, order: str) -> str:
    """A name for what is asked of a table, such as 1x1_vote; empty for the protocol that it was made for."""
    own = about["num_clips"], len(about["crops"])
    asked = cfg.eval_clips or own[0], cfg.crops or own[1]
    parts = [
        "x".join(map(str, asked)) if asked != own else "",
        fusion if fusion != about["fusion"] else "",
        order if order != about["orders"][0] else "",
    ]
    return "_".join(part for part in parts if part)


def _name(cfg: DictConfig, trained: DictConfig, path: Path) -> str:
    """A folder's name for the views that are asked for, so that those of several evaluations lie side by side."""
    from vidtrain.build.parts import part

    views = f"{trained.clip.eval_clips}x{part(trained.augmentation.eval).crops}"
    order = "" if trained.clip.frame_order == "forward" else trained.clip.frame_order
    joint = "joint" if trained.model.fusion == "joint" else ""
    checkpoint = "" if path.stem == "best" else path.stem
    parts = (cfg.split, views, joint, order, checkpoint, cfg.weights or "")
    return "_".join(part for part in parts if part)


def as_trained(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The configuration that a checkpoint carries, with what the command line changes of it.

    A vote is none of the model's fusions: it takes clips that are judged one by one.
    """
    trained = migrate(config, f"the checkpoint {cfg.checkpoint}")
    for option, place in CHANGES.items():
        if cfg[option] is not None and not (option == "fusion" and cfg[option] == "vote"):
            OmegaConf.update(trained, place, cfg[option], merge=False)
    if cfg.fusion == "vote" and trained.model.fusion == "joint":
        trained.model.fusion = "mean_logits"
    return trained


def main() -> None:
    launch("evaluate", evaluate, check)


if __name__ == "__main__":
    main()
