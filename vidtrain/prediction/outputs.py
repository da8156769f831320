"""What is made of every prediction as it comes: rows of results, numbers, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.windows import WindowDataset
from vidtrain.files.escaping import shown
from vidtrain.prediction import pictures
from vidtrain.prediction.files import Results, write_logits, write_timeline
from vidtrain.prediction.run import Failure, Prediction, Reader
from vidtrain.prediction.segments import Segment, segments, smoothed, window_edges
from vidtrain.reports.charts import warn_of_failure


@dataclass(frozen=True)
class Labeling:
    """How windows are labeled: the mean over `smooth` of them, and from which probability (`threshold`) on;
    `independent` where a time may have several classes."""

    smooth: int
    threshold: float
    independent: bool


@dataclass(frozen=True)
class Outputs:
    """Takes predictions of `reader` and adds them to `results`; `folders` are those of the videos, where any are
    wanted. `labeling` is None where videos are judged as a whole. `note` says what the colors of a sheet mean; where it
    names a class, `{}` stands for it. `from_even`: heat of an even share is drawn as none.
    """

    results: Results
    reader: Reader
    folders: Mapping[str, Path]
    labeling: Labeling | None
    logits: bool
    render: bool
    note: str
    from_even: bool

    def take(self, found: Prediction) -> None:
        chances, parts = found.chances, []
        if self.labeling is not None:
            chances = smoothed(found.chances, self.labeling.smooth)
            edges = window_edges(found.starts, found.ends, found.seconds)
            parts = segments(chances, edges, self.labeling.threshold, self.labeling.independent)
        self.results.add(found, parts)
        if found.path not in self.folders or not (self.logits or self.render or self.labeling):
            return
        folder = self.folders[found.path]
        folder.mkdir(parents=True, exist_ok=True)
        if self.logits:
            write_logits(found, self.reader.classes, folder)
        if self.labeling is not None:
            write_timeline(found, self.results, parts, folder)
            title = f"{shown(found.path)}: {len(found.starts)} windows"
            path = folder / "timeline.png"
            warn_of_failure(
                str(path),
                lambda: pictures.draw_video_timeline(found, self.reader.classes, chances, parts, title, path),
                self.reader.console,
            )
        if self.render:
            what = f"pictures of {found.path}"
            warn_of_failure(what, lambda: self._render(found, parts, folder), self.reader.console)

    def _render(self, found: Prediction, parts: Sequence[Segment], folder: Path) -> None:
        dataset = WindowDataset(self.reader.videos, found.chunks)
        about: Mapping[str, Any] = self.results.about
        try:
            if self.labeling is None:
                top = [(each["class"], each["probability"]) for each in self.results.top(found.chances[0])]
                title, note = f"{shown(found.path)}\n{about['protocol']}", self.note.format(shown(top[0][0]))
                pictures.draw_sheet(found, dataset, top, title, note, self.from_even, folder / "sheet.png")
            name = Path(found.path).name
            path = folder / "labeled.mp4"
            pictures.draw_labeled_video(found, dataset, self.results.top, name, parts, self.from_even, path)
        except DecodeError as error:  # in a part that no clip shows: the answer stands
            cause = f"its pictures could not be drawn: {error.cause}"
            self.reader.failures.append(Failure(error.path, cause))
            self.reader.console.warn(f"{shown(error.path)}: {shown(cause)}")


def labeling(smooth: int, threshold: float | None, independent: bool) -> Labeling:
    """With the threshold that is usual where none is given: any answer, or of several labels what is more likely than
    not."""
    usual = 0.5 if independent else 0.0
    return Labeling(smooth, usual if threshold is None else threshold, independent)
