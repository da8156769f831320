"""What predict leaves: results as a table, JSON or CSV, and the numbers of every video in a folder of its name."""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vidtrain.files.atomic import strict_json, write_text_atomic
from vidtrain.files.escaping import csv_text, shown, shown_lines
from vidtrain.prediction.run import Failure, Prediction
from vidtrain.prediction.segments import Segment
from vidtrain.tracking.console import make_console
from vidtrain.tracking.ledgers import Ledger

MOST_SHOWN = 200  # rows of the table on a terminal


@dataclass
class Results:
    """The results so far, as rows.

    `about` says what gave them. A row is a video with its `topk` classes, the most probable first; or, in windows, a
    stretch of one class.
    """

    about: dict[str, Any]
    classes: Sequence[str]
    topk: int
    windows: bool
    videos: list[dict[str, Any]] = field(default_factory=list)

    def add(self, found: Prediction, segments: Sequence[Segment]) -> None:
        if not self.windows:
            self.videos.append({"path": found.path, "top": self.top(found.chances[0])})
            return
        named = [
            {"start_s": round(each.start, 3), "end_s": round(each.end, 3), "class": self.classes[each.class_index],
             "probability": round(each.probability, 6)} for each in segments
        ]  # fmt: skip
        video = {"path": found.path, "seconds": round(found.seconds, 3), "windows": len(found.starts)}
        self.videos.append(video | {"segments": named})

    def top(self, chances: np.ndarray) -> list[dict[str, Any]]:
        """The most probable classes of chances [k]; of equal ones the first."""
        best = np.argsort(-chances, kind="stable")[: self.topk]
        return [{"class": self.classes[k], "probability": round(float(chances[k]), 6)} for k in best.tolist()]

    @property
    def columns(self) -> tuple[str, ...]:
        if self.windows:
            return ("path", "start_s", "end_s", "class", "probability")
        return ("path", *_ranked(min(self.topk, len(self.classes))))

    def rows(self, video: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of one of `videos`; numbers as they are."""
        if self.windows:
            return [(video["path"], *each.values()) for each in video["segments"]]
        return [(video["path"], *(value for each in video["top"] for value in each.values()))]

    def as_csv(self) -> str:
        return csv_text([self.columns, *(row for video in self.videos for row in self.rows(video))])

    def as_json(self, failures: Sequence[Failure]) -> str:
        whole = {**self.about, "videos": self.videos, "failures": [each._asdict() for each in failures]}
        return strict_json(whole, indent=2) + "\n"


class AsTheyCome:
    """Gives every answer out as CSV as soon as it is there: to `stream`, and to the file `path`, each where there is
    one. What a kill leaves in the file are whole rows.

    Raises `UserError` where a row cannot be written.
    """

    def __init__(self, results: Results, stream: TextIO | None, path: Path | None):
        self._results, self._stream, self._path = results, stream, path
        self._given = 0
        if path is not None:
            path.unlink(missing_ok=True)  # of a call that was killed
        self._file = None if path is None else Ledger(path)
        self._write(csv_text([results.columns]))

    def give(self) -> None:
        """The answers that came since the last call."""
        for video in self._results.videos[self._given :]:
            self._write(csv_text(self._results.rows(video)))
        self._given = len(self._results.videos)

    def _write(self, text: str) -> None:
        if self._file is not None and text:
            self._file.write(text)
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()

    def close(self) -> None:
        """The file goes, as others hold all of it."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink()


def partial_of(out: Path) -> Path:
    """The file that has the answers so far, while `out` has none yet."""
    if out.suffix in (".csv", ".json"):
        return out.with_name(f"{out.stem}.partial.csv")
    return out / "predictions.partial.csv"


def print_results(results: Results, failures: Sequence[Failure], form: str) -> None:
    """Prints all results to standard output, as a table, JSON or CSV."""
    if form == "table":
        show(results, make_console(is_main=True))
        return
    text = results.as_json(failures) if form == "json" else results.as_csv()
    sys.stdout.write(shown_lines(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def show(results: Results, console: Any) -> None:
    """The results as a table on a terminal, with paths below the folder that they have in common."""
    paths = [video["path"] for video in results.videos]
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
    rows: list[tuple[str, ...]] = []
    for video in results.videos:
        name = os.path.relpath(video["path"], common)
        if results.windows:
            rows += [
                (
                    name,
                    f"{each['start_s']:.1f}",
                    f"{each['end_s']:.1f}",
                    each["class"],
                    f"{each['probability']:.1%}",
                )
                for each in video["segments"]
            ]
        else:
            rows.append((name, *(f"{each['class']} {each['probability']:.1%}" for each in video["top"])))
    ranks = tuple(str(rank + 1) for rank in range(min(results.topk, len(results.classes))))
    columns = ("", "from s", "to s", "", "mean") if results.windows else ("", *ranks)
    console.table(f"{results.about['protocol']}\n{shown(common)}", columns, rows[:MOST_SHOWN])
    if len(rows) > MOST_SHOWN:
        console.info(f"and {len(rows) - MOST_SHOWN} more rows; format=csv or out=FOLDER gives them all")


def write_results(results: Results, failures: Sequence[Failure], out: Path) -> None:
    """Writes all results into the folder `out`, or one format into the file `out`."""
    if out.suffix == ".json":
        write_text_atomic(out, results.as_json(failures))
    elif out.suffix == ".csv":
        write_text_atomic(out, results.as_csv())
    else:
        write_text_atomic(out / "predictions.csv", results.as_csv())
        write_text_atomic(out / "predictions.json", results.as_json(failures))
        if failures:
            write_text_atomic(out / "failures.csv", csv_text([Failure._fields, *failures]))
        else:  # of an earlier call
            (out / "failures.csv").unlink(missing_ok=True)


def write_logits(found: Prediction, classes: Sequence[str], folder: Path) -> None:
    """logits.npz: clip_logits [w v k], logits [w k], starts and ends [w] in seconds, classes [k]; w is 1, and the times
    are those of nothing, where the video was judged as a whole."""
    np.savez(
        folder / "logits.npz",
        clip_logits=found.clip_logits,
        logits=found.logits,
        starts=found.starts,
        ends=found.ends,
        classes=np.array(classes),
    )


def write_timeline(found: Prediction, results: Results, segments: Sequence[Segment], folder: Path) -> None:
    """timeline.csv, a row a window with its most probable classes, and segments.csv."""
    count = min(results.topk, len(results.classes))
    rows = [("start_s", "end_s", *_ranked(count))]
    for start, end, chances in zip(found.starts, found.ends, found.chances, strict=True):
        unread = np.isnan(chances).any()
        cells = [""] * (2 * count) if unread else [v for each in results.top(chances) for v in each.values()]
        rows.append((f"{start:.3f}", f"{end:.3f}", *cells))
    write_text_atomic(folder / "timeline.csv", csv_text(rows))
    columns = ("start_s", "end_s", "class", "probability")
    named = [
        (f"{each.start:.3f}", f"{each.end:.3f}", results.classes[each.class_index], f"{each.probability:.6f}")
        for each in segments
    ]
    write_text_atomic(folder / "segments.csv", csv_text([columns, *named]))


def _ranked(count: int) -> tuple[str, ...]:
    """Columns of the most probable classes: top1, p1, top2, p2 ..."""
    return tuple(f"{what}{rank + 1}" for rank in range(count) for what in ("top", "p"))


def folders_of(paths: Sequence[str], out: Path) -> dict[str, Path]:
    """A folder below `out` for each video: its place below the folder that all have in common, without its suffix
    unless two would share one."""
    absolute = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    places = [os.path.relpath(path, common) for path in absolute]
    short = [os.path.splitext(place)[0] for place in places]
    twice = {place for place, count in Counter(short).items() if count > 1}
    return {
        path: out / (place if bare in twice else bare)
        for path, place, bare in zip(paths, places, short, strict=True)
    }
