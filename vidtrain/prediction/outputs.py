"""Writes the prediction for every video: a row of a table, JSON or CSV, and its numbers and pictures in a folder."""

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vidtrain.app.launch import fail
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.windows import WindowDataset
from vidtrain.data.stores.places import absolute, common_folder, is_url, relative
from vidtrain.errors import pluralize
from vidtrain.evaluation.calibrated import UNSURE, Calibration
from vidtrain.files.atomic import Ledger, strict_json, write_text_atomic
from vidtrain.files.escaping import csv_text, first_lines, shown, shown_lines
from vidtrain.prediction import pictures
from vidtrain.prediction.run import (
    Failure,
    Plan,
    Prediction,
    Predictor,
    Reader,
    Segment,
    segments,
    smoothed,
    window_edges,
)
from vidtrain.reports.frames import draw_timeline
from vidtrain.reports.pages import warn_of_failure
from vidtrain.tracking.console import as_data, make_console
from vidtrain.training.run import Console

EXIT_UNREAD = 1
MOST_SHOWN = 200  # rows of the table on a terminal
MAX_NAMED = 20  # unreadable videos that the closing message lists


@dataclass
class Results:
    """The results so far, as rows. `about` describes the model and its settings.

    A row is a video with its `topk` classes, the most probable first. With windows, a row is a segment of one class. If
    the `calibration` has thresholds, a video also has an answer, which may be `unsure`; if it has sets, a prediction
    set.
    """

    about: dict[str, Any]
    classes: Sequence[str]
    topk: int
    windows: bool
    calibration: Calibration | None = None
    independent: bool = False  # whether a sigmoid scores each class by itself
    videos: list[dict[str, Any]] = field(default_factory=list)

    def add(self, prediction: Prediction, segments: Sequence[Segment]) -> None:
        video: dict[str, Any] = {"path": prediction.path}
        if self.windows:
            video |= {"seconds": round(prediction.seconds, 3), "windows": len(prediction.starts)}
            video["segments"] = [
                {"start_s": round(part.start, 3), "end_s": round(part.end, 3),
                 "class": self.classes[part.class_index], "probability": round(part.probability, 6)}
                for part in segments
            ]  # fmt: skip
        else:
            probabilities = prediction.probabilities[0]
            video |= {**self.decisions(probabilities), "top": self.top(probabilities)}
        self.videos.append(video)

    def decisions(self, probabilities: np.ndarray) -> dict[str, list[str]]:
        """The answer for probabilities [k], an empty list if unsure, and the prediction set, as far as the calibration
        has thresholds and sets."""
        if self.calibration is None:
            return {}
        numbers = {
            "answer": self.calibration.answers(probabilities, self.independent),
            "set": self.calibration.set_of(probabilities),
        }
        return {key: [self.classes[k] for k in indices] for key, indices in numbers.items() if indices is not None}

    def answer_text(self, probabilities: np.ndarray) -> str:
        """The answer and the prediction set of probabilities [k] as a text for pictures; empty without a
        calibration."""
        decided = self.decisions(probabilities)
        if not decided:
            return ""
        answer = " and ".join(decided["answer"]) or UNSURE
        if "set" not in decided:
            return answer
        return f"{answer}; one of {', '.join(decided['set'])}" if decided["set"] else f"{answer}; empty set"

    @property
    def decision_columns(self) -> tuple[str, ...]:
        """The columns for `decisions`."""
        return tuple(self.decisions(np.zeros(len(self.classes))))

    def top(self, probabilities: np.ndarray) -> list[dict[str, Any]]:
        """The most probable classes of probabilities [k]; among equal ones, the first comes first."""
        best = np.argsort(-probabilities, kind="stable")[: self.topk]
        return [{"class": self.classes[k], "probability": round(float(probabilities[k]), 6)} for k in best.tolist()]

    @property
    def columns(self) -> tuple[str, ...]:
        if self.windows:
            return ("path", "start_s", "end_s", "class", "probability")
        return ("path", *self.decision_columns, *_ranked(min(self.topk, len(self.classes))))

    def rows(self, video: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of one of `videos`, with unrounded numbers."""
        if self.windows:
            return [(video["path"], *part.values()) for part in video["segments"]]
        decisions = _decision_cells(video)
        return [(video["path"], *decisions, *(value for answer in video["top"] for value in answer.values()))]

    def as_csv(self) -> str:
        return csv_text([self.columns, *(row for video in self.videos for row in self.rows(video))])

    def as_json(self, failures: Sequence[Failure]) -> str:
        whole = {**self.about, "videos": self.videos, "failures": [failure._asdict() for failure in failures]}
        return strict_json(whole, indent=2) + "\n"


def _decision_cells(video: Mapping[str, Any]) -> list[str]:
    """The decisions on a video as cells, with ";" between classes."""
    empty = {"answer": UNSURE, "set": ""}
    return [";".join(video[key]) or nothing for key, nothing in empty.items() if key in video]


class CsvStream:
    """Writes every prediction as CSV as soon as it is known: to `stream`, to the file `path`, or to both; either may be
    None. A kill leaves whole rows in the file. Raises `UserError` if a row cannot be written."""

    def __init__(self, results: Results, stream: TextIO | None, path: Path | None):
        self._results, self._stream, self._path = results, stream, path
        self._written = 0
        if path is not None:
            path.unlink(missing_ok=True)  # left by a call that was killed
        self._file = None if path is None else Ledger(path)
        self._write(csv_text([results.columns]))

    def write(self) -> None:
        """Writes the predictions that were added since the last call."""
        for video in self._results.videos[self._written :]:
            self._write(csv_text(self._results.rows(video)))
        self._written = len(self._results.videos)

    def _write(self, text: str) -> None:
        if self._file is not None and text:
            self._file.write(text)
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()

    def close(self) -> None:
        """Deletes the file, as other files hold all results by now."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink()


def partial_file(out: Path) -> Path:
    """The file that holds the predictions so far, until all are written to `out`."""
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


def show(results: Results, console: Console) -> None:
    """The results as a table on a terminal, with paths below the folder that they have in common."""
    paths = [video["path"] for video in results.videos]
    common = common_folder(paths) if paths else ""
    rows: list[tuple[str, ...]] = []
    for video in results.videos:
        name = relative(absolute(video["path"]), common)
        if results.windows:
            for part in video["segments"]:
                times = (f"{part['start_s']:.1f}", f"{part['end_s']:.1f}")
                rows.append((name, *times, part["class"], f"{part['probability']:.1%}"))
        else:
            top = (f"{answer['class']} {answer['probability']:.1%}" for answer in video["top"])
            rows.append((name, *_decision_cells(video), *top))
    ranks = tuple(str(rank + 1) for rank in range(min(results.topk, len(results.classes))))
    columns = ("", "from s", "to s", "", "mean") if results.windows else ("", *results.decision_columns, *ranks)
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


def write_logits(prediction: Prediction, classes: Sequence[str], folder: Path) -> None:
    """Writes logits.npz: clip_logits [w v k], logits [w k], starts and ends [w] in seconds, classes [k]. If a video was
    classified as a whole, w is 1 and the times have no meaning."""
    np.savez(
        folder / "logits.npz",
        clip_logits=prediction.clip_logits,
        logits=prediction.logits,
        starts=prediction.starts,
        ends=prediction.ends,
        classes=np.array(classes),
    )


def write_timeline(prediction: Prediction, results: Results, segments: Sequence[Segment], folder: Path) -> None:
    """Writes timeline.csv, a row for each window with its most probable classes, and segments.csv."""
    count = min(results.topk, len(results.classes))
    rows = [("start_s", "end_s", *_ranked(count))]
    for start, end, probabilities in zip(prediction.starts, prediction.ends, prediction.probabilities, strict=True):
        cells = [value for answer in results.top(probabilities) for value in answer.values()]
        if np.isnan(probabilities).any():  # the window could not be read
            cells = [""] * (2 * count)
        rows.append((f"{start:.3f}", f"{end:.3f}", *cells))
    write_text_atomic(folder / "timeline.csv", csv_text(rows))
    columns = ("start_s", "end_s", "class", "probability")
    named = [
        (f"{part.start:.3f}", f"{part.end:.3f}", results.classes[part.class_index], f"{part.probability:.6f}")
        for part in segments
    ]
    write_text_atomic(folder / "segments.csv", csv_text([columns, *named]))


def _ranked(count: int) -> tuple[str, ...]:
    """Columns of the most probable classes: top1, p1, top2, p2 ..."""
    return tuple(f"{what}{rank + 1}" for rank in range(count) for what in ("top", "p"))


def folders_of(paths: Sequence[str], out: Path) -> dict[str, Path]:
    """A folder below `out` for each video: its path below the common folder of all, without the suffix unless two
    videos would get one folder."""
    common = common_folder(paths)
    places = [relative(absolute(path), common) for path in paths]
    if any(map(is_url, paths)):  # dots and slashes of a URL must not lead out of the folder
        places = [re.sub(r"(^|/)[./:]+(?=[/:]|$)", r"\1_", place) for place in places]
    short = [os.path.splitext(place)[0] for place in places]
    twice = {place for place, count in Counter(short).items() if count > 1}
    return {
        path: out / (place if bare in twice else bare) for path, place, bare in zip(paths, places, short, strict=True)
    }


# --- each prediction as it comes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labeling:
    """How windows are labeled: by means over `smooth` windows that reach `threshold`, a number or [k]; `independent`
    says whether a window may have several classes."""

    smooth: int
    threshold: float | np.ndarray
    independent: bool


@dataclass(frozen=True)
class Outputs:
    """Adds predictions of `reader` to `results`, and writes logits, timelines and pictures into the `folders` of the
    videos.

    `labeling` is None if videos are classified as a whole. `note` explains the colors of a sheet, with `{}` for a
    class. With `from_even`, the mean heat is drawn as no heat.
    """

    results: Results
    reader: Reader
    folders: Mapping[str, Path]
    labeling: Labeling | None
    logits: bool
    render: bool
    note: str
    from_even: bool

    def take(self, prediction: Prediction) -> None:
        labeling, classes, console = self.labeling, self.reader.classes, self.reader.console
        probabilities, edges, parts = prediction.probabilities, np.zeros(0), []
        if labeling is not None:
            probabilities = smoothed(prediction.probabilities, labeling.smooth)
            edges = window_edges(prediction.starts, prediction.ends, prediction.seconds)
            parts = segments(probabilities, edges, labeling.threshold, labeling.independent)
        self.results.add(prediction, parts)
        if prediction.path not in self.folders or not (self.logits or self.render or labeling):
            return
        folder = self.folders[prediction.path]
        folder.mkdir(parents=True, exist_ok=True)
        if self.logits:
            write_logits(prediction, classes, folder)
        if labeling is not None:
            write_timeline(prediction, self.results, parts, folder)
            title = f"{shown(prediction.path)}: {len(prediction.starts)} windows"
            path = folder / "timeline.png"
            stretches = [(part.start, part.end, part.class_index) for part in parts]
            draw = partial(draw_timeline, path, title, classes, edges, probabilities, stretches)
            warn_of_failure(str(path), draw, console)
        if self.render:
            what = f"pictures of {prediction.path}"
            warn_of_failure(what, lambda: self._render(prediction, parts, folder), console)

    def _render(self, prediction: Prediction, parts: Sequence[Segment], folder: Path) -> None:
        dataset = WindowDataset(self.reader.videos, prediction.chunks)
        name, top_of = Path(prediction.path).name, self.results.top
        try:
            if self.labeling is None:
                top = [(answer["class"], answer["probability"]) for answer in top_of(prediction.probabilities[0])]
                answer = self.results.answer_text(prediction.probabilities[0])
                name = f"{answer}: {name}" if answer else name  # the end of a long one is cut
                title = shown(prediction.path) + (f": {shown(answer)}" if answer else "")
                title += f"\n{self.results.about['protocol']}"
                note = self.note.format(shown(top[0][0]))
                sheet = folder / "sheet.png"
                pictures.draw_sheet(prediction, dataset, top, title, note, self.from_even, sheet)
            video = folder / "labeled.mp4"
            pictures.draw_labeled_video(prediction, dataset, top_of, name, parts, self.from_even, video)
        except DecodeError as error:  # in a part that no clip shows, so the prediction is valid
            cause = f"its pictures could not be drawn: {error.cause}"
            self.reader.failures.append(Failure(error.path, cause))
            self.reader.console.warn(f"{shown(error.path)}: {shown(cause)}")


def labeling(
    smooth: int, threshold: float | None, independent: bool, calibration: Calibration | None = None
) -> Labeling:
    """How windows are labeled. Without a `threshold`, those of the calibration apply. Without these, the threshold is
    0, or 0.5 if a video may have several labels."""
    if threshold is not None:
        return Labeling(smooth, threshold, independent)
    if calibration is not None and calibration.thresholds is not None:
        return Labeling(smooth, calibration.thresholds, independent)
    return Labeling(smooth, 0.5 if independent else 0.0, independent)


def write_predictions(
    outputs: Outputs, predictor: Predictor, plans: Sequence[Plan], form: str, out: Path | None
) -> None:
    """Predicts all videos, writes the results to `out` and, as `form`, to standard output. Ends the program with status
    1 if anything could not be read."""
    results, reader, started = outputs.results, outputs.reader, time.perf_counter()
    console = reader.console
    streams = form == "csv" and not sys.stdout.isatty()  # a terminal has the progress bar
    unfinished = None if out is None else partial_file(out)
    csv_stream = CsvStream(results, as_data(sys.stdout) if streams else None, unfinished)
    try:
        for prediction in reader.predictions(plans, predictor, pictures=outputs.render) if plans else ():
            outputs.take(prediction)
            csv_stream.write()
    except BaseException:  # including Ctrl-C
        if unfinished is not None:
            console.warn(f"ended early: the predictions for {len(results.videos)} videos are in {unfinished}")
        raise
    seconds = time.perf_counter() - started
    if not streams:
        print_results(results, reader.failures, form)
    if out is not None:
        write_results(results, reader.failures, out)
    csv_stream.close()
    console.info(
        f"{len(results.videos)} of {pluralize(len(reader.paths), 'video')} in {seconds:.1f} s with "
        f"{pluralize(reader.workers, 'reading process')}; after the first batch, {reader.clock.data_share:.0%} of the "
        "time was waiting for them"
    )
    if out is not None:
        console.info(f"results in {out}")
    if reader.failures:
        unread = {failure.path for failure in reader.failures}
        where = f"; all are in {out / 'failures.csv'}" if out is not None and outputs.folders else ""
        causes = [f"{shown(failure.path)}: {shown(failure.cause)}" for failure in reader.failures]
        what = f"{len(unread)} of {pluralize(len(reader.paths), 'video')} could not be read, or not wholly{where}"
        fail("\n  ".join([what, *first_lines(causes, MAX_NAMED)]), status=EXIT_UNREAD)
