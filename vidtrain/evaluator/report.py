"""The report of a view table: metrics of the chosen protocol, of all others in the table, and of frame-order
ablations, with a chart."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from vidtrain.data.augment.geometry import UNCUT
from vidtrain.errors import UserError, pluralize
from vidtrain.evaluation.calibrated import Calibration, calibration_of_table
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
from vidtrain.evaluation.view_store import StoredViews, open_views
from vidtrain.evaluation.views import EVALUATION_FUSIONS, fusions_of
from vidtrain.files.escaping import shown
from vidtrain.files.folders import check_writable
from vidtrain.reports.pages import warn_of_failure
from vidtrain.reports.plots import plot_views
from vidtrain.training.run import Console

SHOWN = ("top1", "top5", "map", "map_micro", "exact_match", "f1_macro", "f1_micro", "f1_weighted", "precision_macro",
         "recall_macro", "loss")  # fmt: skip
# Marks a protocol whose clips are only close to those that an evaluation with fewer clips would read
NEAR = "~"


RELIABILITY = {"nll": "loss", "brier": "Brier score", "ece": "calibration error", "ece_mass": "in equal bins"}


def results_table(console: Console, title: str, result: Report) -> None:
    """Prints the final table: a column for single clips and one for videos."""
    metrics = result.metrics
    videos = {name: f"{metrics[name]:.4f}" for name in SHOWN if name in metrics}
    for of in result.reliability[:1]:
        videos |= {title_of: with_interval(of[name]) for name, title_of in RELIABILITY.items()}
    clips = {name: f"{metrics[f'clip_{name}']:.4f}" for name in videos if f"clip_{name}" in metrics}
    rows = [(name, clips.get(name, ""), value) for name, value in videos.items()]
    rows += [("coverage", "", result.coverage), ("protocol", "", result.protocol)]
    console.table(title, ("", "clip", "video"), rows)


def with_interval(number: Mapping[str, float | None]) -> str:
    """A `value` and its interval, unless there is none, as of the videos of one group."""
    value, low, high = number["value"], number["low"], number["high"]
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


def warn_missing(console: Console, result: Report, split: str) -> None:
    for path, cause in result.table.missing:
        console.warn(f"missing from {split}: {shown(path)} ({shown(cause)})")


def republish(
    table: Path,
    out: Path | None,
    fusion: str | None,
    order: str | None,
    num_clips: int | None,
    num_crops: int | None,
    calibrated: bool | None,
    console: Console,
) -> float:
    """Reports another protocol of a stored table; None means the table's own. Returns top-1, or mean average precision
    if videos may have several labels. The calibration is that of the run that the table lies in, unless `calibrated` is
    False. Raises `UserError` if it is True and there is none."""
    views = open_views(table)
    about = views.about
    fusion, order = fusion or about["fusion"], order or about["orders"][0]
    if out is None:
        clips, crops = num_clips or about["num_clips"], num_crops or len(about["crops"])
        table_protocol = {f"{about['num_clips']}x{len(about['crops'])}", about["fusion"], about["orders"][0]}
        names = (f"{clips}x{crops}", fusion, order)
        differing = "_".join(name for name in names if name not in table_protocol)
        out = views.folder.parent
        if differing:  # that folder holds the report of the table's own protocol, which is not replaced
            out = out.with_name(f"{out.name}_as_{differing}")
    check_writable(out)
    title = f"{views.folder}, the {about['split']} split of {about['dataset']}"
    calibration = None
    if calibrated is not False:
        calibration = calibration_of_table(views.folder, about["identity"])
    if calibrated and calibration is None:
        why = f"the run of {views.folder} has no calibration of the checkpoint of this table"
        raise UserError(f"calibrated=true: {why}")
    result = publish(views, out, title, console, fusion, order, num_clips, num_crops, calibration)
    console.info(f"tables in {out}")
    return result.metrics[headline(views.labels.ndim == 2)]


def publish(
    views: StoredViews,
    out: Path,
    title: str,
    console: Console,
    fusion: str,
    order: str,
    num_clips: int | None = None,
    num_crops: int | None = None,
    calibration: Calibration | None = None,
) -> Report:
    """Writes and prints the report of the chosen protocol, and of all others in the table. None means all clips or all
    crops. A `calibration` applies to the chosen protocol alone. Raises `UserError` for a protocol that is not in the
    table, and if no video could be read."""
    about, multi_label = views.about, views.labels.ndim == 2
    known = fusions_of(about["joint"], multi_label)
    check_protocol(views, fusion, order)
    clips, crops = choose(views, num_clips or about["num_clips"], num_crops or len(about["crops"]))
    protocol = protocol_text(views, order, clips.numbers, clips.same, crops.numbers, fusion)
    apply_to(calibration, fusion, protocol, console)
    table = views.table(order, clips.numbers, crops.numbers)
    result = report(table, fusion, protocol, about["independent"], calibration)
    warn_missing(console, result, about["split"])
    write_report(result, out, views.paths, about["classes"], views.groups)
    protocols = all_protocols(views, known)
    probed = probes(views, clips, crops, fusion) if len(about["orders"]) > 1 else []
    points = curve(views, fusion)
    name = headline(multi_label)
    write_protocols(out, about, protocols, probed, points, fusion, name)
    results_table(console, title, result)
    several = about["num_clips"] * len(about["crops"]) > 1
    if several:
        protocols_table(console, views, protocols, known, name)
    if probed:
        probes_table(console, probed, name)
    if several or probed:
        picture = out / "views_curve.png"
        draw = partial(plot_views, about, protocols, points, probed, fusion, name, picture)
        warn_of_failure(str(picture), draw, console)
    return result


def apply_to(calibration: Calibration | None, fusion: str, protocol: str, console: Console) -> None:
    """Says that probabilities are calibrated, and whether for this protocol. Raises `UserError` where not for its
    fusion."""
    if calibration is None:
        return
    warning = calibration.check_protocol(fusion, protocol)
    console.info(f"calibration: {calibration}; calibrated=false goes without")
    if warning:
        console.warn(warning)


def check_protocol(views: StoredViews, fusion: str, order: str) -> None:
    """Raises `UserError` for a fusion or an order of frames that a table does not allow."""
    check_fusion(fusion, fusions_of(views.about["joint"], views.labels.ndim == 2))
    if order not in views.about["orders"]:
        raise UserError(
            f"frame_order={order} is not in the table, which holds {', '.join(views.about['orders'])}: evaluate the "
            "checkpoint with it among frame_order_ablations"
        )


def check_fusion(fusion: str, known: Sequence[str]) -> None:
    """Raises `UserError` for a fusion that a table does not support."""
    if fusion in known:
        return
    if "joint" in known:
        raise UserError(
            f"fusion={fusion}: the model attended over the tokens of all clips jointly, so the table has no logits of "
            f"single clips; evaluate the checkpoint with fusion={fusion}, which classifies each clip by itself"
        )
    if fusion == "joint":
        raise UserError(
            "fusion=joint: in this table each clip was classified by itself; evaluate the checkpoint with fusion=joint"
        )
    reason = "only for videos with one label" if fusion in EVALUATION_FUSIONS else "unknown"
    raise UserError(f"fusion={fusion} is {reason}; choose one of {', '.join(known)}")


def protocol_text(
    views: StoredViews, order: str, clips: tuple[int, ...], same: bool, crops: tuple[int, ...], fusion: str
) -> str:
    """A protocol as text, as in `vidtrain.build.parts.protocol_text`. If its clips are only close to those that an
    evaluation with as many would read, it says `2 of 4 clips`."""
    about = views.about
    total = about["num_clips"]
    count = total if about["joint"] else len(clips)
    shown_clips = pluralize(count, "clip") if same else f"{count} of {total} clips"
    only = about["crops"][0]
    crop = only if only in UNCUT.values() else pluralize(len(crops), "crop")
    return f"{about['frames'][order]}, {shown_clips} x {crop}, {fusion}"


def protocols_table(
    console: Console, views: StoredViews, protocols: Sequence[Protocol], fusions: Sequence[str], name: str
) -> None:
    """Prints a row for each clips x crops in the table's first frame order, with a column for single views and for each
    fusion."""
    first = views.about["orders"][0]
    rows: dict[str, list[str]] = {}
    for protocol in protocols:
        if protocol.order == first:
            label = protocol.name if protocol.same else f"{protocol.name} {NEAR}"
            row = rows.setdefault(label, [label, f"{protocol.metrics[f'clip_{name}']:.4f}"])
            row.append(f"{protocol.metrics[name]:.4f}")
    console.table(f"{name} by protocol, {first}", ("clips x crops", "clip", *fusions), list(rows.values()))
    if views.about["joint"]:
        console.info(
            f"the model attends over the tokens of all {views.about['num_clips']} clips jointly: views cannot be taken "
            "apart by clips, so there is one row per crop"
        )
    elif not all(protocol.same for protocol in protocols):
        console.info(f"{NEAR} the clips are close to those that an evaluation with as many would read")


def probes_table(console: Console, probed: Sequence[Probe], name: str) -> None:
    first = probed[0].protocol
    rows = []
    for probe in probed:
        metrics = probe.protocol.metrics
        row = (probe.protocol.order, f"{metrics[f'clip_{name}']:.4f}", f"{metrics[name]:.4f}")
        changes = (f"{probe.change:+.4f}", f"{probe.same_class:.4f}")
        rows.append((*row, *(("", "") if probe is probed[0] else changes)))
    columns = ("frames", f"clip {name}", f"video {name}", "change", "same class")
    console.table(f"temporal probes, {first.name}, {first.fusion}", columns, rows)
