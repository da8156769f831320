"""Compares finished runs: settings, metrics, classes and videos, with confidence intervals; reads only their folders.

python -m vidtrain.compare outputs/motion/A outputs/motion/B
python -m vidtrain.compare outputs/motion/A        # writes the run's report.html again
"""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.config.references import to_settings
from vidtrain.config.schemas import CompareConfig
from vidtrain.config.targets import check_settings
from vidtrain.errors import UserError, pluralize
from vidtrain.files.escaping import shown
from vidtrain.files.folders import RunLock, check_links

if TYPE_CHECKING:  # so that --help does not wait for the import of numpy
    from vidtrain.training.run import Console

MOST_SHOWN = 30  # at most this many recipes are in the console's table


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_settings(cfg, CompareConfig)
    if cfg.runs is None:
        faults.append(("runs", "must be given: python -m vidtrain.compare RUN RUN, or the folder of a sweep"))
    elif not all(isinstance(place, str) for place in _places(cfg)):
        faults.append(("runs", f"{cfg.runs} must be a folder, or a list of folders"))
    return faults


def _places(cfg: CompareConfig | DictConfig) -> list[Any]:
    return [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)


def show(summary: Mapping[str, Any], console: "Console") -> None:
    """Prints the recipes as a table, the best first, and the notes."""
    from vidtrain.reports.pages import chosen_words, four, interval, ranked, signed

    pairs = {pair["other"]: pair for pair in summary["comparisons"]}
    recipes = ranked(summary)
    rows = []
    for recipe in recipes[:MOST_SHOWN]:
        number = recipe["number"]
        tested: tuple[str | None, ...] = ("", "", "baseline" if number == summary["baseline"] else "")
        if number in pairs:
            pair = pairs[number]
            tested = (signed(pair["difference"]), interval(pair["widest"]), pair["verdict"])
        means = (four(recipe["mean"]), four(recipe["deviation"]))
        rows.append((f"{number}: {recipe['label']}", recipe["n"], *means, *tested))
    metric, share = summary["metric"], f"{summary['confidence']:.0%} interval"
    columns = ("recipe", "runs", metric, "deviation", f"{summary['tested']} difference", share, "")
    count = len(summary["recipes"])
    title = f"{len(summary['runs'])} runs of {pluralize(count, 'recipe')}"
    console.table(title, columns, rows)
    if len(recipes) > MOST_SHOWN:
        console.info(f"{len(recipes) - MOST_SHOWN} more recipes are in recipes.csv")
    if chosen := chosen_words(summary):
        console.info(chosen)
    for note in summary["notes"]:
        console.info(f"note: {note}")


def compare(cfg: DictConfig) -> None:
    from vidtrain.comparison.run import compare_runs
    from vidtrain.comparison.runs import find_runs, read_all
    from vidtrain.files.atomic import write_json_atomic
    from vidtrain.reports.compare_charts import draw
    from vidtrain.reports.pages import compare_page, replace_page, write_tables
    from vidtrain.tracking.console import make_console

    settings = to_settings(cfg, CompareConfig)
    console, started = make_console(is_main=True), time.monotonic()
    finished = find_runs(_places(settings))
    for folder, why in finished.left_out:
        console.warn(f"left out: {shown(folder)}: {why}")
    of_several = finished.sweeps or finished.left_out or cfg.metric or cfg.split or cfg.baseline
    if len(finished.runs) == 1 and not of_several:
        return write_page_again(finished.runs[0], Path(cfg.out or finished.runs[0]), console)
    if len(finished.runs) < 2:
        names = ", ".join(map(str, finished.runs)) or "none"
        raise UserError(f"a comparison takes two finished runs or more; in runs={cfg.runs} there is {names}")
    with console.phase("reading", len(finished.runs)):
        runs = read_all(finished.runs, settings.split, lambda done: console.advance(done, {}))
    compared, changed = compare_runs(runs, settings, bool(finished.sweeps), console)
    left_out = [{"folder": str(folder), "why": why} for folder, why in finished.left_out]
    summary = {**compared, "left_out": left_out}
    out = Path(settings.out or f"outputs/compare/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    check_links(out, folders=False)
    with RunLock(out):
        write_tables(summary, changed, out)
        write_json_atomic(out / "summary.json", summary)
        page = out / "report.html"
        pictures = draw(summary, out, console)
        replace_page(page, lambda: compare_page(summary, pictures, out), console)
    show(summary, console)
    console.info(f"{page} after {time.monotonic() - started:.0f} s")


def write_page_again(run: Path, out: Path, console: "Console") -> None:
    """Writes the page of a finished run into the folder `out`, including evaluations since its end."""
    from vidtrain.runs.page import PAGE, write_page

    check_links(out, folders=False)
    with RunLock(out):
        write_page(run, out / PAGE)
    console.info(f"{out / PAGE} of this run; name several to compare them")


def main() -> None:
    launch("compare", compare, check, bare_words_are="runs")


if __name__ == "__main__":
    main()
