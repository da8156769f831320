"""Evaluates a checkpoint without training: the same transforms and protocol that it was validated with.

python -m vidtrain.evaluate checkpoint=outputs/motion/NAME
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.app import launch
from vidtrain.config import check_targets
from vidtrain.errors import UserError
from vidtrain.stored_config import up_to_date
from vidtrain.trained import locate, open_trained

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
SHOWN = ("top1", "top5", "map", "map_micro", "exact_match", "f1_macro", "f1_micro", "f1_weighted", "precision_macro",
         "recall_macro", "loss")  # fmt: skip


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
    from vidtrain.build import part, protocol_text
    from vidtrain.evaluation.report import report, write_report
    from vidtrain.evaluation.views import view_table
    from vidtrain.training.precision import autocast

    context = autocast(ranks, cfg.trainer.precision)
    batches = data.batches(console)
    table = view_table(model, batches, transform, len(data.manifest), ranks.device, context, data.crops)
    found = report(table, model.fusion, protocol_text(cfg, model.fusion), part(cfg.loss).independent)
    for path, cause in table.missing:
        console.warn(f"missing from {data.split}: {path} ({cause})")
    if ranks.is_main:
        write_report(found, out, data.manifest.paths, data.manifest.classes)
    return found


def results_table(console, title: str, found: "Report") -> None:
    """The closing table: one column for single clips, one for videos."""
    rows = []
    for name in SHOWN:
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


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg)
    if OmegaConf.is_missing(cfg, "checkpoint"):
        faults.append(("checkpoint", "must be given: a run's folder, a checkpoint, or an exported file"))
        return faults
    try:
        locate(cfg.checkpoint)
    except UserError as error:
        faults.append(("checkpoint", str(error).removeprefix("checkpoint=")))
    return faults


def evaluate(cfg: DictConfig) -> float:
    from vidtrain import build
    from vidtrain.app import report as report_faults
    from vidtrain.check import check_run
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import join_ranks

    with join_ranks(cfg.device) as ranks:
        console = make_console(ranks.is_main)
        path = locate(cfg.checkpoint)
        opened = open_trained(path, cfg.trust_targets)
        trained = as_trained(opened.config, cfg)
        found = check_run(trained, training=False)
        report_faults([("the checkpoint's configuration, as changed", key, why) for key, why in found])
        out = Path(cfg.out or path.resolve().parents[1] / "eval" / f"{cfg.split}_again")
        ranks.on_main(lambda: writable(out))
        build.set_cpu_threads(trained.trainer.cpu_threads, ranks)
        reading = build.reading(trained, ranks, None)
        splits = build.manifests(trained, ranks, console)
        if cfg.split not in splits:
            raise UserError(f"split={cfg.split} is not in the dataset; it has {', '.join(splits)}")
        manifest = splits[cfg.split]
        if tuple(manifest.classes) != opened.classes:
            differing = sorted(set(manifest.classes) ^ set(opened.classes)) or ["only their order"]
            raise UserError(
                f"the checkpoint {path} tells other classes apart than the dataset has: "
                f"{len(opened.classes)} and {len(manifest.classes)}; differing: {', '.join(differing[:8])}"
            )
        model = opened.model(trained, ranks)
        transform = opened.transform(trained, model, ranks.device)
        data = build.eval_data(trained, cfg.split, manifest, reading, ranks)
        found = evaluate_split(trained, model, data, transform, ranks, console, out)
        results_table(console, f"{path} on {cfg.split}", found)
        console.info(f"tables in {out}")
        return found.metrics["map" if manifest.multi_label else "top1"]


def as_trained(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The configuration that a checkpoint carries, with what the command line changes of it."""
    trained = up_to_date(config, f"the checkpoint {cfg.checkpoint}")
    for option, place in CHANGES.items():
        if cfg[option] is not None:
            OmegaConf.update(trained, place, cfg[option], merge=False)
    return trained


def main() -> None:
    launch("evaluate", evaluate, check)


if __name__ == "__main__":
    main()
