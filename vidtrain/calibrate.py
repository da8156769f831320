"""Calibrates a checkpoint on val: a temperature, and on request thresholds and prediction sets.

python -m vidtrain.calibrate checkpoint=outputs/motion/NAME min_precision=0.95 set_coverage=0.9
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.app.view_tables import check, compute_views
from vidtrain.build.checkpoint_loader import find_checkpoint, run_of
from vidtrain.errors import UserError

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.evaluation.view_store import StoredViews
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.run import Console


def calibrate(cfg: DictConfig) -> None:
    from vidtrain.evaluation.calibrated import place_of
    from vidtrain.evaluator.calibration import CalibrationTargets, calibrate_views
    from vidtrain.files.atomic import write_json_atomic
    from vidtrain.files.folders import check_inside
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import join_ranks

    with join_ranks(cfg.device) as ranks, ExitStack() as stack:
        console, checkpoint = make_console(ranks.is_main), find_checkpoint(cfg.checkpoint)
        place = place_of(checkpoint)
        check_inside(place, checkpoint.parent)
        if cfg.remove:
            ranks.on_main(lambda: remove(place, checkpoint, console))
            return
        views, fusion = find_views(cfg, checkpoint, ranks, console, stack)
        targets = CalibrationTargets(cfg.method, cfg.min_precision, cfg.min_recall, cfg.set_coverage, cfg.by_class)
        order, clips, crops = cfg.frame_order, cfg.eval_clips, cfg.crops

        def write() -> None:
            record = calibrate_views(views, fusion, order, clips, crops, targets, console)
            write_json_atomic(place, record)
            show(record, console)
            console.info(f"{place}: evaluate, predict and export apply it from now on; calibrated=false goes without")
            write_page_again(checkpoint, console)

        ranks.on_main(write)


def find_views(
    cfg: DictConfig, checkpoint: Path, ranks: "Ranks", console: "Console", stack: ExitStack
) -> "tuple[StoredViews, str]":
    """The views to calibrate on, and their fusion. Raises `UserError` for a table of another checkpoint."""
    from vidtrain.evaluation.calibrated import STORED
    from vidtrain.evaluation.view_store import open_views
    from vidtrain.files.atomic import sha256

    if cfg.from_table is None:
        evaluated = compute_views(cfg, ranks, console, stack)
        if evaluated.card is not None:
            raise UserError(
                f"{checkpoint} is an exported file: calibrate the run or its checkpoint, and export it again"
            )
        return evaluated.views, evaluated.fusion
    views = open_views(Path(cfg.from_table))
    identity = views.about["identity"]
    if (identity["checkpoint"], identity["weights"]) != (sha256(checkpoint), STORED):
        raise UserError(
            f"from_table={cfg.from_table} holds logits of another checkpoint than {checkpoint}, or of other weights"
        )
    return views, cfg.fusion or views.about["fusion"]


def remove(place: Path, checkpoint: Path, console: "Console") -> None:
    if not place.is_file():
        raise UserError(f"remove=true: {checkpoint} is not calibrated, there is no {place}")
    place.unlink()
    console.info(f"removed {place}; exported files keep their calibration")
    write_page_again(checkpoint, console)


def write_page_again(checkpoint: Path, console: "Console") -> None:
    """Writes the page again, if this is the best checkpoint of a finished run."""
    from vidtrain.reports.pages import warn_of_failure
    from vidtrain.runs.page import PAGE, write_page

    run = run_of(checkpoint)
    if run is not None and checkpoint.name == "best.pt" and (run / "summary.json").is_file():
        page = run / PAGE
        warn_of_failure(str(page), lambda: write_page(run, page), console)


def show(record: Mapping[str, Any], console: "Console") -> None:
    """Prints the costs before and after, thresholds and sets."""
    from vidtrain.evaluation.calibration import Scaling
    from vidtrain.evaluator.report import RELIABILITY, with_interval

    before, after, scaling = record["before"], record["after"], record["scaling"]
    rows = [(title, with_interval(before[name]), with_interval(after[name])) for name, title in RELIABILITY.items()]
    rows.append(("by chance, if calibrated", f"{before['chance']:.4f}", f"{after['chance']:.4f}"))
    title = f"{Scaling(scaling['scale'], scaling['bias'])} on {record['split']}, {record['coverage']} videos"
    console.table(f"{title}, {record['protocol']['text']}", ("", "before", "after, on held-out videos"), rows)
    thresholds, sets = record["thresholds"], record["sets"]
    if thresholds is not None:
        classes = thresholds["classes"]
        lacking = [row["class"] for row in classes if row["threshold"] is None]
        answers = sum(row["answers"] for row in classes)
        console.info(
            f"{thresholds['wanted']} {thresholds['share']:g}: {len(classes) - len(lacking)} of {len(classes)} classes "
            f"have a threshold; {answers} answers on {record['videos']} videos pass theirs"
        )
        if lacking:
            console.warn(f"no threshold gives that for {', '.join(lacking[:8])}{', ...' * (len(lacking) > 8)}")
    if sets is not None:
        total = sum(sets["sizes"])
        mean = sum(size * count for size, count in enumerate(sets["sizes"])) / total
        within = " within every class" if sets["by_class"] else ""
        console.info(
            f"sets of coverage {sets['coverage']:g}{within} hold {mean:.2f} classes, "
            f"{sets['sizes'][0] / total:.1%} of them none"
        )


def main() -> None:
    launch("calibrate", calibrate, check)


if __name__ == "__main__":
    main()
