"""Evaluates a checkpoint without training: the same transforms and protocol that it was validated with.

python -m vidtrain.evaluate checkpoint=outputs/motion/NAME/checkpoints/best.pt
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.app import launch
from vidtrain.config import check_targets, components
from vidtrain.errors import UserError

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from torch import nn

    from vidtrain.build import EvalData
    from vidtrain.evaluation.report import Report
    from vidtrain.training.distributed import Ranks

# The program's option -> where the value stands in the configuration that the checkpoint carries
CHANGES = {
    "data_root": "data_root",
    "dataset": "dataset",
    "prepared": "data.prepared",
    "eval_clips": "clip.eval_clips",
    "frame_order": "clip.frame_order",
    "crops": "augmentation.eval.crops",
    "fusion": "model.fusion",
    "batch_size": "trainer.eval_batch_size",
    "num_workers": "trainer.num_workers",
    "precision": "trainer.precision",
}
TRUSTED = ("vidtrain.", "torch.nn.", "torch.optim.", "torchvision.models.", "timm.")


def evaluate_split(
    cfg: DictConfig,
    model: "nn.Module",
    data: "EvalData",
    transform: "nn.Module",
    ranks: "Ranks",
    console,
    out: Path,
) -> "Report":
    """Evaluates a split by all ranks and writes its tables into `out`; every rank returns the report."""
    from vidtrain.build import protocol_text
    from vidtrain.evaluation.report import report, write_report
    from vidtrain.evaluation.views import view_table
    from vidtrain.training.loop import autocast

    context = autocast(ranks, cfg.trainer.precision)
    batches = data.batches(console)
    table = view_table(model, batches, transform, len(data.manifest), ranks.device, context, data.crops)
    found = report(table, model.fusion, protocol_text(cfg, model.fusion))
    for path, cause in table.missing:
        console.warn(f"missing from {data.split}: {path} ({cause})")
    if ranks.is_main:
        write_report(found, out, data.manifest.paths, data.manifest.classes)
    return found


def results_table(console, title: str, found: "Report") -> None:
    """The closing table: one column for single clips, one for videos."""
    rows = []
    for name in ("top1", "top5", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "loss"):
        if name in found.metrics:
            clip = found.metrics[f"clip_{name}"] if f"clip_{name}" in found.metrics else None
            rows.append(
                (name, *("" if value is None else f"{value:.4f}" for value in (clip, found.metrics[name])))
            )
    rows += [("coverage", "", found.coverage), ("protocol", "", found.protocol)]
    console.table(title, ("", "clip", "video"), rows)


def writable(out: Path) -> None:
    """Makes the output folder; raises `UserError` now, rather than after the work, where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write into out={out}: {error.strerror}; choose another folder with out="
        ) from error


def check_trust(config: DictConfig, source: str) -> None:
    """Raises `UserError` if a checkpoint's configuration would build anything but models, data and layers.

    A name is enough to call any function of any package, so a checkpoint from elsewhere could run code.
    """
    strange = [
        f"{path}: {node['_target_']}"
        for path, node in components(config)
        if not str(node["_target_"]).startswith(TRUSTED)
    ]
    if strange:
        raise UserError(
            f"the checkpoint {source} asks to build parts from outside of this package:\n  "
            + "\n  ".join(strange)
            + "\nIf you trust it and have them installed, say trust_targets=true"
        )


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg)
    if OmegaConf.is_missing(cfg, "checkpoint"):
        faults.append(("checkpoint", "must be given: checkpoint=RUN/checkpoints/best.pt"))
    return faults


def evaluate(cfg: DictConfig) -> float:
    from vidtrain import build
    from vidtrain.app import report as report_faults
    from vidtrain.check import check_run
    from vidtrain.tracking.console import make_console
    from vidtrain.training import checkpoint
    from vidtrain.training.distributed import join_ranks

    with join_ranks(cfg.device) as ranks:
        console = make_console(ranks.is_main)
        payload = checkpoint.load(cfg.checkpoint)
        if not cfg.trust_targets:
            check_trust(OmegaConf.create(payload["config"]), cfg.checkpoint)
        trained = as_trained(payload["config"], cfg)
        found = check_run(trained, training=False)
        report_faults([("the checkpoint's configuration, as changed", key, why) for key, why in found])
        out = Path(cfg.out or Path(cfg.checkpoint).resolve().parents[1] / "eval" / f"{cfg.split}_again")
        ranks.on_main(lambda: writable(out))
        build.set_cpu_threads(trained.trainer.cpu_threads, ranks)
        reading = build.reading(trained, ranks, None)
        splits = build.manifests(trained, ranks, console)
        if cfg.split not in splits:
            raise UserError(f"split={cfg.split} is not in the dataset; it has {', '.join(splits)}")
        manifest = splits[cfg.split]
        if list(manifest.classes) != payload["classes"]:
            differing = sorted(set(manifest.classes) ^ set(payload["classes"])) or ["only their order"]
            raise UserError(
                f"the checkpoint {cfg.checkpoint} tells other classes apart than the dataset has: "
                f"{len(payload['classes'])} and {len(manifest.classes)}; differing: {', '.join(differing[:8])}"
            )
        model = build.model(trained, len(manifest.classes), ranks)
        checkpoint.restore(model, payload["model"], cfg.checkpoint)
        transform = build.device_transform(trained, ranks.device)
        data = build.eval_data(trained, cfg.split, manifest, reading, ranks)
        found = evaluate_split(trained, model, data, transform, ranks, console, out)
        results_table(console, f"{cfg.checkpoint} on {cfg.split}", found)
        console.info(f"tables in {out}")
        return found.metrics["top1"]


def as_trained(config: dict[str, Any], cfg: DictConfig) -> DictConfig:
    """The configuration that a checkpoint carries, with what the command line changes of it."""
    trained = OmegaConf.create(config)
    for option, place in CHANGES.items():
        if cfg[option] is not None:
            OmegaConf.update(trained, place, cfg[option], merge=False)
    return trained


def main() -> None:
    launch("evaluate", evaluate, check)


if __name__ == "__main__":
    main()
