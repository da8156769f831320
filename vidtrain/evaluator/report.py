"""From a view table to what a user reads: the chosen protocol, all that the table holds, probes and a chart."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from vidtrain.build.data import EvalData
from vidtrain.errors import UserError
from vidtrain.evaluation import view_store
from vidtrain.evaluation.fusion import EVALUATION_FUSIONS, fusions_of
from vidtrain.evaluation.protocols import (
    Probe,
    Protocol,
    all_protocols,
    choose,
    curve,
    headline,
    probes,
    write_protocols,
)
from vidtrain.evaluation.report import Report, report, write_report
from vidtrain.evaluation.view_store import StoredViews
from vidtrain.evaluation.views import view_table
from vidtrain.files.atomic import write_json_atomic
from vidtrain.files.escaping import shown
from vidtrain.files.folders import check_inside, check_links, check_writable
from vidtrain.reports.charts import warn_of_failure
from vidtrain.reports.plots import plot_views
from vidtrain.training.ranks.distributed import Ranks

SHOWN = ("top1", "top5", "map", "map_micro", "exact_match", "f1_macro", "f1_micro", "f1_weighted", "precision_macro",
         "recall_macro", "loss")  # fmt: skip
NEAR = "~"  # marks a protocol whose clips are only near those of an evaluation of its own


def results_table(console: Any, title: str, found: Report) -> None:
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


def evaluate_split(
    model: nn.Module,
    data: EvalData,
    transform: nn.Module,
    autocast: AbstractContextManager,
    fusion: str,
    protocol: str,
    independent: bool,
    ranks: Ranks,
    console: Any,
    out: Path,
) -> Report:
    """Evaluates a split by all ranks and writes its tables into `out`; every rank returns the report.

    This is the closing evaluation of a training run. It keeps no views; vidtrain.evaluate does.
    """
    batches = data.batches(console)
    table = view_table(model, batches, transform, len(data.manifest), ranks.device, autocast, data.crops)
    result = report(table, fusion, protocol, independent)
    for path, cause in table.missing:
        console.warn(f"missing from {data.split}: {shown(path)} ({shown(cause)})")
    if ranks.is_main:
        write_report(result, out, data.manifest.paths, data.manifest.classes)
    return result


def output_folder(
    wanted: str | None, checkpoint: Path, split: str, clip: Any, crops: int, joint: bool, weights: str | None
) -> Path:
    """The folder for the tables of an evaluation: `wanted`, or one below the run's, named by the views.

    Raises `UserError` where a link leads out of the run's folder.
    """
    order = "" if clip.frame_order == "forward" else clip.frame_order
    stem = "" if checkpoint.stem == "best" else checkpoint.stem
    views = f"{clip.eval_clips}x{crops}"
    parts = (split, views, "joint" if joint else "", order, stem, weights or "")
    run = checkpoint.resolve().parents[1]
    out = Path(wanted or run / "eval" / "_".join(part for part in parts if part))
    if wanted is None:
        check_inside(out, run)
    check_links(out / view_store.FOLDER, below=True)
    return out


def write_changes(changes: Mapping[str, Any] | None, out: Path) -> None:
    """data_changes.json beside the tables, where their data are not those that the run was started with."""
    if changes is None:
        (out / "data_changes.json").unlink(missing_ok=True)
    else:
        write_json_atomic(out / "data_changes.json", changes)


def republish(
    table: Path,
    out: Path | None,
    fusion: str | None,
    order: str | None,
    num_clips: int | None,
    num_crops: int | None,
    console: Any,
) -> float:
    """Another protocol of a stored table; null means that of the table. Returns top-1 or mean average precision."""
    views = view_store.open_views(table)
    about = views.about
    fusion, order = fusion or about["fusion"], order or about["orders"][0]
    if out is None:
        own, chosen = (
            (about["num_clips"], len(about["crops"])),
            (num_clips or about["num_clips"], num_crops or len(about["crops"])),
        )
        differing = [
            "x".join(map(str, chosen)) if chosen != own else "",
            fusion if fusion != about["fusion"] else "",
            order if order != about["orders"][0] else "",
        ]
        suffix = "_".join(part for part in differing if part)
        out = views.folder.parent
        if suffix:  # the report that lies there is of the table's own protocol
            out = out.with_name(f"{out.name}_as_{suffix}")
    check_writable(out)
    title = f"{views.folder}, the {about['split']} split of {about['dataset']}"
    report = publish(views, out, title, console, fusion, order, num_clips, num_crops)
    console.info(f"tables in {out}")
    return report.metrics["map" if views.labels.ndim == 2 else "top1"]


def publish(
    views: StoredViews,
    out: Path,
    title: str,
    console: Any,
    fusion: str,
    order: str,
    num_clips: int | None = None,
    num_crops: int | None = None,
) -> Report:
    """Writes and shows the chosen protocol, and then all others that the table holds; None means all clips, all crops.

    Raises `UserError` for what the table does not hold, and where no video could be read.
    """
    about = views.about
    check_fusion(views, fusion)
    if order not in about["orders"]:
        raise UserError(
            f"frame_order={order} is not in the table, which holds {', '.join(about['orders'])}: evaluate the "
            "checkpoint with it among frame_order_ablations"
        )
    held = about["num_clips"]
    clips, crops = choose(views, num_clips or held, num_crops or len(about["crops"]))
    found = report(
        views.table(order, clips.numbers, crops.numbers),
        fusion,
        protocol_text(views, order, clips.numbers, clips.same, crops.numbers, fusion),
        about["independent"],
    )
    for path, cause in found.table.missing:
        console.warn(f"missing from {about['split']}: {shown(path)} ({shown(cause)})")
    write_report(found, out, views.paths, about["classes"])
    known = fusions_of(about["joint"], views.labels.ndim == 2)
    protocols = all_protocols(views, known)
    compared = probes(views, clips, crops, fusion) if len(about["orders"]) > 1 else []
    points = curve(views, fusion)
    name = headline(views.labels.ndim == 2)
    write_protocols(out, about, protocols, compared, points, fusion, name)
    results_table(console, title, found)
    several = about["num_clips"] * len(about["crops"]) > 1
    if several:
        protocols_table(console, views, protocols, known, name)
    if compared:
        probes_table(console, compared, name)
    if several or compared:
        picture = out / "views_curve.png"
        warn_of_failure(
            str(picture),
            lambda: plot_views(views.about, protocols, points, compared, fusion, name, picture),
            console,
        )
    return found


def check_fusion(views: StoredViews, fusion: str) -> None:
    joint, multi_label = views.about["joint"], views.labels.ndim == 2
    known = fusions_of(joint, multi_label)
    if fusion in known:
        return
    if joint:
        raise UserError(
            f"fusion={fusion}: the model attended over the tokens of all clips jointly, so the table has no single "
            f"clips to fuse; evaluate the checkpoint with fusion={fusion}, which judges clips one by one"
        )
    if fusion == "joint":
        raise UserError(
            "fusion=joint: the clips of this table were judged one by one; evaluate the checkpoint with fusion=joint"
        )
    if fusion in EVALUATION_FUSIONS:
        raise UserError(f"fusion={fusion} is for one label a video; choose one of {', '.join(known)}")
    raise UserError(f"fusion={fusion} is unknown; choose one of {', '.join(known)}")


def protocol_text(
    views: StoredViews, order: str, clips: tuple[int, ...], same: bool, crops: tuple[int, ...], fusion: str
) -> str:
    """As `vidtrain.build.parts.protocol_text` says it; clips that are only near those of such an evaluation are counted
    as part of the table's."""
    about = views.about
    held = about["num_clips"]
    count = held if about["joint"] else len(clips)
    shown = f"{count} of {held} clips" if not same else f"{count} clip{'s' if count > 1 else ''}"
    cut = "whole frame" if about["whole_frame"] else f"{len(crops)} crop{'s' if len(crops) > 1 else ''}"
    return f"{about['frames'][order]}, {shown} x {cut}, {fusion}"


def protocols_table(
    console: Any, views: StoredViews, protocols: list[Protocol], fusions: tuple[str, ...], name: str
) -> None:
    """A row for each clips x crops in the table's first order, a column for single views and for each fusion."""
    first = views.about["orders"][0]
    rows: dict[str, list[str]] = {}
    for each in protocols:
        if each.order != first:
            continue
        label = f"{each.name}{'' if each.same else ' ' + NEAR}"
        row = rows.setdefault(label, [label, f"{each.metrics[f'clip_{name}']:.4f}"])
        row.append(f"{each.metrics[name]:.4f}")
    console.table(f"{name} by protocol, {first}", ("clips x crops", "clip", *fusions), list(rows.values()))
    if views.about["joint"]:
        console.info(
            f"the model attends over the tokens of all {views.about['num_clips']} clips jointly: views cannot be taken "
            "apart by clips, so there is one row per crop"
        )
    elif any(not each.same for each in protocols):
        console.info(f"{NEAR} clips of the table near those that an evaluation of its own would read")


def probes_table(console: Any, compared: list[Probe], name: str) -> None:
    rows = [
        (
            each.protocol.order,
            f"{each.protocol.metrics[f'clip_{name}']:.4f}",
            f"{each.protocol.metrics[name]:.4f}",
            f"{each.change:+.4f}" if number else "",
            f"{each.same_class:.4f}" if number else "",
        )
        for number, each in enumerate(compared)
    ]
    first = compared[0].protocol
    columns = ("frames", f"clip {name}", f"video {name}", "change", "same class")
    console.table(f"temporal probes, {first.name}, {first.fusion}", columns, rows)
