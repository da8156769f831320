"""The calibration of a checkpoint: it is stored beside the checkpoint and in its exports' cards, and applied to
logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtrain.errors import UserError
from vidtrain.evaluation.calibration import Scaling
from vidtrain.files.atomic import read_json, sha256

FORMAT = "vidtrain-calibration/1"
STORED = "as stored"  # the weights in the entry "model" of a checkpoint
UNSURE = "unsure"  # the answer where no class reaches its threshold
AGAIN = "calibrate it again, or set calibrated=false to go without"


@dataclass(frozen=True)
class Calibration:
    """Maps fused logits of one protocol to probabilities and answers. `record` is the content of the file.

    A class is answered if its probability reaches `thresholds` [k], and is in the prediction set if it reaches `sets`
    [1] or [k]. Either is None if it was not requested.
    """

    record: Mapping[str, Any]
    scaling: Scaling
    thresholds: np.ndarray | None
    sets: np.ndarray | None

    @classmethod
    def of(cls, record: Mapping[str, Any], source: Path) -> "Calibration":
        """Checks the record from the file `source`. Raises `UserError` if it is damaged or has another format."""
        try:
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']}, not {FORMAT}")
            k, rows, sets = len(record["classes"]), record["thresholds"], record["sets"]
            scale, bias = (_numbers(record["scaling"][key], 1, k) for key in ("scale", "bias"))
            if len(scale) != len(bias) or (len(scale) == 1 and scale[0] <= 0):
                raise ValueError(f"its scale {scale[:3]} is not allowed")
            least = None if sets is None else _numbers(sets["least"], 1, k)
            values = None
            if rows is not None:  # null in JSON: the class is never answered, so its threshold is above 1
                stored_thresholds = [row["threshold"] for row in rows["classes"]]
                values = _numbers([2.0 if value is None else value for value in stored_thresholds], k)
            [str(record["protocol"][key]) for key in ("text", "fusion")]
            [str(record[key]) for key in ("checkpoint", "weights", "split", "videos")]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the calibration in {source} is damaged or of another version ({error}); {AGAIN}"
            ) from error
        arrays = (None if column is None else np.array(column) for column in (values, least))
        return cls(record, Scaling(tuple(scale), tuple(bias)), *arrays)

    def __str__(self) -> str:
        return f"{self.scaling}, from {self.record['videos']} videos of {self.record['split']}"

    def check_protocol(self, fusion: str, text: str) -> str | None:
        """Returns a warning if the protocol `text` differs from that of the fit. Raises `UserError` if the fusion
        differs, as its logits have another scale."""
        fitted = self.record["protocol"]
        if fitted["fusion"] != fusion:
            raise UserError(
                f"the checkpoint is calibrated for fusion={fitted['fusion']}, and not for fusion={fusion}; {AGAIN}"
            )
        if fitted["text"] == text:
            return None
        return f"calibrated on another protocol, so probabilities are less sure: {fitted['text']}; here {text}"

    def answers(self, probabilities: np.ndarray, independent: bool) -> list[int] | None:
        """The classes whose probabilities [k] reach their thresholds. With one label a video, this is the most probable
        class or none. Without thresholds, it is the class of a prediction set that holds only one."""
        if self.thresholds is None:
            classes = self.set_of(probabilities)
            return classes if classes is None or len(classes) == 1 else []
        likely = np.argsort(-probabilities, kind="stable")[: None if independent else 1]
        return [number for number in likely.tolist() if probabilities[number] >= self.thresholds[number]]

    def set_of(self, probabilities: np.ndarray) -> list[int] | None:
        """The classes of the prediction set, the most probable first."""
        if self.sets is None:
            return None
        order = np.argsort(-probabilities, kind="stable")
        return order[np.broadcast_to(probabilities >= self.sets, probabilities.shape)[order]].tolist()


def _numbers(values: Any, *sizes: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) not in sizes or not np.isfinite(numbers).all():
        raise ValueError(f"it has {len(numbers)} numbers instead of {' or '.join(map(str, sizes))}, or some not finite")
    return numbers


def place_of(checkpoint: Path) -> Path:
    """The file beside a checkpoint that holds its calibration."""
    return checkpoint.with_suffix(".calibration.json")


def read_calibration(checkpoint: Path, weights: str) -> Calibration | None:
    """The calibration of the checkpoint's `weights` (such as ema), or None. Raises `UserError` if the file is damaged,
    or belongs to an earlier checkpoint."""
    path = place_of(checkpoint)
    if not path.is_file():
        return None
    calibration = Calibration.of(read_json(path, AGAIN), path)
    if calibration.record["checkpoint"] != sha256(checkpoint):
        raise UserError(f"{path} belongs to an earlier {checkpoint.name}, which has been replaced; {AGAIN}")
    return calibration if calibration.record["weights"] == weights else None


def find_calibration(
    checkpoint: Path, card: Mapping[str, Any] | None, weights: str, wanted: bool | None
) -> Calibration | None:
    """The calibration of the checkpoint's `weights`, or that in the `card` of an exported file. None if there is none,
    or if `wanted` is False. Raises `UserError` if `wanted` is True and there is none, or if the file is damaged."""
    if wanted is False:
        return None
    if card is None:
        calibration = read_calibration(checkpoint, weights)
    else:
        record = card.get("calibration")
        calibration = record and Calibration.of(record, checkpoint)
    if wanted and calibration is None:
        raise UserError(
            f"calibrated=true: {checkpoint} is not calibrated; python -m vidtrain.calibrate checkpoint=RUN does that"
        )
    return calibration


def calibration_of_table(folder: Path, identity: Mapping[str, Any]) -> Calibration | None:
    """The calibration of the checkpoint that computed the view table in `folder`, RUN/eval/NAME/views. None if the run
    has none."""
    for path in sorted(folder.resolve().parents[2].glob("checkpoints/*.calibration.json")):
        calibration = Calibration.of(read_json(path, AGAIN), path)
        if all(calibration.record[key] == identity[key] for key in ("checkpoint", "weights")):
            return calibration
    return None
