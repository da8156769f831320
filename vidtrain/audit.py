"""Reads every file of a dataset once, each guarded against crashes and hangs, and reports what is wrong with them.

python -m vidtrain.audit dataset=class_folders dataset.source.root=/data/mine

Its exit status is 3 if the dataset exceeds one of the bounds, which it names.
"""

import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vidtrain.app.launch import fail, launch
from vidtrain.config.dataset_schemas import AuditConfig
from vidtrain.config.targets import check_of_dataset
from vidtrain.errors import pluralize
from vidtrain.files.folders import check_links
from vidtrain.training.process import cores

if TYPE_CHECKING:  # so that --help does not wait for the imports of PyAV and numpy
    from vidtrain.data.audit.inspection import Inspection
    from vidtrain.training.run import Console

EXIT_BOUND_EXCEEDED = 3
# Modules that the fork server imports once for all workers; the first one imports all that this program imports
PRELOAD = ("vidtrain.app.launch", "vidtrain.data.audit.inspection")
SHOWN = 10  # at most this many unreadable files are printed


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_of_dataset(cfg, AuditConfig)
    if cfg.group_pattern is not None:
        try:
            re.compile(cfg.group_pattern)
        except re.error as error:
            faults.append(("group_pattern", f"{cfg.group_pattern!r} is not a regular expression: {error}"))
    return faults


def audit(cfg: DictConfig) -> None:
    from vidtrain.build.data import index_file
    from vidtrain.build.parts import instantiate_component
    from vidtrain.data.audit.findings import entries
    from vidtrain.data.audit.summary import Bounds, summarize, table
    from vidtrain.data.decoding.index import VideoIndex
    from vidtrain.files.atomic import write_json_atomic, write_text_atomic
    from vidtrain.files.folders import RunLock
    from vidtrain.reports.pages import audit_page, replace_page
    from vidtrain.tracking.console import make_console

    console, started, name = make_console(True), time.monotonic(), cfg.dataset.name
    out = Path(cfg.out or f"outputs/audit/{name}")
    manifests = instantiate_component(cfg.dataset.source).manifests()
    records = entries(manifests, cfg.group_pattern)
    files = {entry.path: manifests[entry.split].frame_rate for entry in records}
    check_links(out, folders=False)
    with RunLock(out):
        (out / "thumbnails").mkdir(exist_ok=True)
        # If it cannot be created, that is one error now instead of one per file
        VideoIndex(index_file(cfg)).close()
        console.info(f"dataset {name}: {pluralize(len(files), 'file')} in {', '.join(manifests)}")
        inspections = inspect_all(files, out, cfg, console)
        bounds = Bounds(**{key: cfg[key] for key in Bounds.__dataclass_fields__})
        classes = list(dict.fromkeys(name for manifest in manifests.values() for name in manifest.classes))
        summary = {"dataset": name, **summarize(records, classes, inspections, cfg.max_distance, bounds)}
        write_json_atomic(out / "summary.json", summary)
        write_text_atomic(out / "files.csv", table(records, inspections, summary))
        page = out / "report.html"
        replace_page(page, partial(audit_page, summary, f"Audit of {name}", out / "thumbnails"), console)
    rows = []
    for bound in summary["bounds"]:
        state = "no bound" if bound["bound"] is None else "kept" if bound["kept"] else "EXCEEDED"
        rows.append((bound["meaning"], bound["shown"], bound["shown_bound"], state))
    console.table(f"audit of {name}", ("finding", "value", "at most", ""), rows)
    causes = [(file["path"], file["cause"]) for file in summary["unreadable"][:SHOWN]]
    if causes:
        console.table(f"unreadable: {len(summary['unreadable'])}", ("file", "cause"), causes)
    for leak in summary["shortcuts"]:
        if leak["called_out"]:
            share = f"{leak['accuracy']:.1%} of the videos, against {leak['baseline']:.1%} for the most common class"
            console.warn(f"{leak['attribute']} alone predicts the class of {share}")
    console.info(f"{page} after {time.monotonic() - started:.0f} s")
    exceeded = [bound for bound in summary["bounds"] if not bound["kept"]]
    if exceeded:
        names = ", ".join(f"{bound['name']}={bound['bound']} (found {bound['shown']})" for bound in exceeded)
        advice = "correct the dataset (the page lists what and where), or set larger bounds; null is no bound"
        fail(f"bounds exceeded: {names}; {advice}", EXIT_BOUND_EXCEEDED)


def inspect_all(
    files: Mapping[str, float | None], out: Path, cfg: DictConfig, console: "Console"
) -> "dict[str, Inspection]":
    """Inspects every file. `files` maps each to its frame rate if it is a folder of images, else to None. Results are
    added to the ledger in `out`; files that it has already are not read again."""
    from vidtrain.build.data import index_file
    from vidtrain.data.audit.inspection import Inspection, KnownFiles, inspect_job
    from vidtrain.data.loading.workers import guarded
    from vidtrain.files.atomic import JsonLines, read_json_lines

    ledger = out / "files.jsonl"
    rows = read_json_lines(ledger) if ledger.exists() else []
    known, lines = KnownFiles(rows, cfg.decode_timeout_s, cfg.retry, cfg.data.size_changes), JsonLines(ledger)
    inspections = {path: inspection for path in files if (inspection := known.find(path))}
    reading = (cfg.data.max_pixels, cfg.data.size_changes)
    waiting = [(path, rate, *reading) for path, rate in files.items() if path not in inspections]
    unreadable = sum(bool(inspection.cause) for inspection in inspections.values())
    if inspections:
        console.info(f"{len(inspections)} of {len(files)} files are known from {ledger}")
    read = partial(inspect_job, index=index_file(cfg), thumbnails=out / "thumbnails")  # the index of training
    workers = min(cfg.num_workers or cores(), len(waiting) or 1)
    try:
        with console.phase("reading", len(files), start_step=len(inspections)):
            for result in guarded(read, waiting, workers, cfg.decode_timeout_s, PRELOAD):
                path = result.item[0]
                inspection = result.value or Inspection.of_failure(path, result.failure)
                lines.append(known.row(path, inspection, hung=result.failure.startswith("hung")))
                inspections[path] = inspection
                unreadable += bool(inspection.cause)
                console.advance(len(inspections), {"unreadable": unreadable})
    except KeyboardInterrupt:
        done = f"{len(inspections)} of {len(files)} files are in {ledger}"
        console.info(f"{done}; the same command continues from there")
        raise
    return {path: inspections[path] for path in files}


def main() -> None:
    launch("audit", audit, check)


if __name__ == "__main__":
    main()
