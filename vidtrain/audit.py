"""Reads every file of a dataset once, each guarded against crashes and hangs, and reports what is wrong with them.

python -m vidtrain.audit dataset=class_folders dataset.source.root=/data/mine

Ends with status 3 where the dataset exceeds one of its bounds, and names which.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import fail, launch
from vidtrain.config.targets import check_targets
from vidtrain.files.escaping import csv_text
from vidtrain.files.folders import check_links
from vidtrain.training.ranks.rendezvous import cores

if TYPE_CHECKING:  # --help should not wait for PyAV and numpy
    from vidtrain.data.audit.findings import Entry
    from vidtrain.data.audit.inspection import Inspection

EXIT_BOUND_EXCEEDED = 3
# Imported once by the process that workers are forked from; the first is what this program itself imports
PRELOAD = ("vidtrain.app.launch", "vidtrain.data.audit.inspection")
LEAST = {"num_workers": 1, "max_distance": 0}
COLUMNS = ("split", "class", "group", "path", "start", "end", "cause", "issues", "copies")
MEASURED = (
    "size", "num_frames", "stated_frames", "width", "height", "rotation", "mirrored", "sample_aspect",
    "duration", "rate", "container", "codec", "pixel_format", "audio", "digest",
)  # fmt: skip


class Ledger:
    """What was found of files so far, by path, size and time of modification; a line is added for each file read."""

    def __init__(self, path: Path):
        from vidtrain.tracking.ledgers import JsonLines, read_json_lines

        rows = read_json_lines(path) if path.exists() else []
        self.path = path
        self._rows = {row["path"]: row for row in rows}
        self._lines = JsonLines(path)

    def find(self, path: str, time_limit: float, retry: bool, size_changes: str) -> "Inspection | None":
        """What is known of the file as it is now. One that hung is read again under a longer limit, with `retry`
        every one that could not be read, and with other `size_changes` every one whose picture changes its size.
        """
        from vidtrain.data.audit.inspection import FORMAT, Inspection

        row = self._rows[path] if path in self._rows else None
        if row is None or (row["stamp"], row["format"]) != (_stamp(path), FORMAT):
            return None
        found = row["found"]
        bounded = "data.max_pixels" in found["cause"]  # which may be another by now
        if found["cause"] and (retry or bounded or (row["hung"] and time_limit > row["decode_timeout_s"])):
            return None
        if row["size_changes"] != size_changes and "size changes" in str((found["cause"], found["issues"])):
            return None
        return Inspection(**{**found, "issues": tuple(map(tuple, found["issues"]))})

    def add(self, path: str, found: "Inspection", time_limit: float, hung: bool, size_changes: str) -> None:
        from vidtrain.data.audit.inspection import FORMAT

        stamp = {
            "path": path,
            "stamp": _stamp(path),
            "format": FORMAT,
            "decode_timeout_s": time_limit,
            "hung": hung,
            "size_changes": size_changes,
        }
        self._lines.append({**stamp, "found": asdict(found)})


def _stamp(path: str) -> list[int]:
    """Size and time of modification, by which a changed file is known."""
    try:
        status = os.stat(path)
    except OSError:  # that it cannot be reached is found, with the cause, by reading it
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def read_all(
    files: Mapping[str, float | None],
    ledger: Ledger,
    cfg: DictConfig,
    thumbnails: Path,
    index: Path,
    console,
) -> "dict[str, Inspection]":
    """What is found of every file. `files` gives the frame rate of those that are folders of images."""
    from vidtrain.data.audit.inspection import Inspection, inspect_job
    from vidtrain.data.processes.workers import guarded

    how = (cfg.decode_timeout_s, cfg.retry, cfg.data.size_changes)
    found = {path: known for path in files if (known := ledger.find(path, *how))}
    reading = (cfg.data.max_pixels, cfg.data.size_changes)
    waiting = [(path, rate, *reading) for path, rate in files.items() if path not in found]
    unreadable = sum(bool(each.cause) for each in found.values())
    if found:
        console.info(f"{len(found)} of {len(files)} files are known from {ledger.path}")
    read = partial(inspect_job, index=index, thumbnails=thumbnails)
    workers = min(cfg.num_workers or cores(), len(waiting) or 1)
    try:
        with console.phase("reading", len(files), start_step=len(found)):
            for result in guarded(read, waiting, workers, cfg.decode_timeout_s, PRELOAD):
                path, failure = result.item[0], result.failure
                seen = result.value or Inspection(max(0, _stamp(path)[0]), failure)
                hung = failure.startswith("hung")
                ledger.add(path, seen, cfg.decode_timeout_s, hung, cfg.data.size_changes)
                found[path] = seen
                unreadable += bool(seen.cause)
                console.advance(len(found), {"unreadable": unreadable})
    except KeyboardInterrupt:
        console.info(
            f"{len(found)} of {len(files)} files are in {ledger.path}; the same command goes on from there"
        )
        raise
    return {path: found[path] for path in files}


def table(
    records: "Sequence[Entry]",
    inspections: "Mapping[str, Inspection]",
    copies: Sequence[Mapping[str, Any]],
    root: str,
) -> str:
    """A row for every record as CSV; `copies` numbers the set of alike files that it is in."""
    from vidtrain.data.audit.summary import short

    sets = {file["path"]: number for number, each in enumerate(copies, start=1) for file in each["files"]}
    rows: list[tuple[Any, ...]] = [(*COLUMNS, *MEASURED)]
    for entry in records:
        found, path = inspections[entry.path], short(entry.path, root)
        issues = "; ".join(f"{kind}: {words}" for kind, words in found.issues)
        copy = sets[path] if path in sets else ""
        known = (entry.split, "|".join(entry.classes), entry.group, path, entry.start, entry.end)
        rows.append((*known, found.cause, issues, copy, *(getattr(found, name) for name in MEASURED)))
    return csv_text(rows)


def show(summary: Mapping[str, Any], title: str, console) -> None:
    """The findings as a table."""
    rows = []
    for each in summary["bounds"]:
        verdict = "no bound" if each["bound"] is None else "kept" if each["kept"] else "EXCEEDED"
        rows.append((each["meaning"], each["shown"], each["shown_bound"], verdict))
    console.table(title, ("finding", "value", "at most", ""), rows)
    causes = [(each["path"], each["cause"]) for each in summary["unreadable"][:10]]
    if causes:
        console.table(f"unreadable: {len(summary['unreadable'])}", ("file", "cause"), causes)
    for each in summary["shortcuts"]:
        if each["called_out"]:
            console.warn(
                f"{each['attribute']} alone tells the class in {each['accuracy']:.1%} of the videos, "
                f"against {each['baseline']:.1%} for the most common class"
            )


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    from vidtrain.data.decoding.conversion import SIZE_CHANGES

    faults = check_targets(cfg)
    if cfg.dataset is None:
        faults.append(("dataset", "must be chosen: dataset=OPTION"))
    if cfg.data.max_pixels < 1:
        faults.append(("data.max_pixels", f"{cfg.data.max_pixels} must be 1 or more"))
    if cfg.decode_timeout_s <= 0:
        faults.append(("decode_timeout_s", f"{cfg.decode_timeout_s} must be above 0 seconds"))
    if cfg.data.size_changes not in SIZE_CHANGES:
        faults.append(("data.size_changes", f"{cfg.data.size_changes} must be {' or '.join(SIZE_CHANGES)}"))
    for key, least in LEAST.items():
        if cfg[key] is not None and cfg[key] < least:
            faults.append((key, f"{cfg[key]} must be {least} or more"))
    for key in map(str, cfg):
        if key.startswith("max_") and key not in LEAST and cfg[key] is not None and cfg[key] < 0:
            faults.append((key, f"{cfg[key]} must be 0 or more, or null for no bound"))
    if cfg.group_pattern is not None:
        try:
            re.compile(cfg.group_pattern)
        except re.error as error:
            faults.append(("group_pattern", f"{cfg.group_pattern!r} is no regular expression: {error}"))
    return faults


def audit(cfg: DictConfig) -> None:
    from vidtrain.build.data import index_file
    from vidtrain.build.parts import instantiate_component
    from vidtrain.data.audit.findings import entries
    from vidtrain.data.audit.summary import Bounds, summarize
    from vidtrain.data.decoding.index import VideoIndex
    from vidtrain.files.atomic import write_json_atomic, write_text_atomic
    from vidtrain.files.folders import RunLock
    from vidtrain.reports.charts import warn_of_failure
    from vidtrain.reports.pages import audit_page
    from vidtrain.tracking.console import make_console

    console, started, name = make_console(True), time.monotonic(), cfg.dataset.name
    out = Path(cfg.out or f"outputs/audit/{name}")
    thumbnails, index = out / "thumbnails", index_file(cfg)  # where training looks
    manifests = instantiate_component(cfg.dataset.source).manifests()
    records = entries(manifests, cfg.group_pattern)
    files = {entry.path: manifests[entry.split].frame_rate for entry in records}
    check_links(out, folders=False)
    with RunLock(out):
        thumbnails.mkdir(exist_ok=True)
        VideoIndex(index).close()  # says now, rather than of every file, if it cannot be made
        console.info(f"dataset {name}: {len(files)} files in {', '.join(manifests)}")
        inspections = read_all(files, Ledger(out / "files.jsonl"), cfg, thumbnails, index, console)
        bounds = Bounds(**{key: cfg[key] for key in Bounds.__dataclass_fields__})
        classes = list(dict.fromkeys(each for manifest in manifests.values() for each in manifest.classes))
        summary = {"dataset": name, **summarize(records, classes, inspections, cfg.max_distance, bounds)}
        write_json_atomic(out / "summary.json", summary)
        write_text_atomic(out / "files.csv", table(records, inspections, summary["copies"], summary["root"]))
        page = out / "report.html"
        page.unlink(missing_ok=True)  # of an earlier audit
        title = f"Audit of {name}"
        warn_of_failure(
            str(page), lambda: write_text_atomic(page, audit_page(summary, title, thumbnails)), console
        )
    show(summary, f"audit of {name}", console)
    console.info(f"{out / 'report.html'} after {time.monotonic() - started:.0f} s")
    exceeded = [
        f"{each['name']}={each['bound']} (found {each['shown']})"
        for each in summary["bounds"]
        if not each["kept"]
    ]
    if exceeded:
        fail(f"bounds exceeded: {', '.join(exceeded)}", EXIT_BOUND_EXCEEDED)


def main() -> None:
    launch("audit", audit, check)


if __name__ == "__main__":
    main()
