"""Records the data of a run in its folder at the start, and compares them with the present data later.

splits/SPLIT.npz     paths, labels, cuts, sizes and times (vidtrain.data.manifest.split_records)
data_changes.jsonl   if the run continued with changed data: a row for each changed split, with the differences
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.metadata import file_digest
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.split_records import SplitChanges, SplitRecord, split_changes
from vidtrain.errors import UserError, pluralize
from vidtrain.files.atomic import JsonLines, read_json
from vidtrain.files.escaping import shown, shown_some
from vidtrain.runs.attempts import last_step
from vidtrain.runs.folder import CHANGES, SPLITS
from vidtrain.training.checkpoint import resumable

if TYPE_CHECKING:  # importing torch takes seconds, which comparing runs should not
    from vidtrain.training.run import Console

NAMED = 5  # files of each kind of change that a message names
RECORDED = 1000  # files of each kind of change that a record names
ALLOW = "data.allow_changed=true"


def begin(
    folder: Path, splits: Mapping[str, Manifest], index: VideoIndex, allowed: bool, console: "Console"
) -> dict[str, str]:
    """Records the splits of a new run, or compares them with those recorded for a run to resume; only on the main rank.
    Returns a digest of each split. Raises `UserError` naming the differences if training data or labels differ, unless
    `allowed`; other differences are warnings."""
    now = {split: SplitRecord.of(manifest) for split, manifest in splits.items()}
    if not resumable(folder / "checkpoints"):
        (folder / CHANGES).unlink(missing_ok=True)
        _save(now, folder)
        return {split: record.digest for split, record in now.items()}
    before = {path.stem: SplitRecord.open(path) for path in sorted((folder / SPLITS).glob("*.npz"))}
    if not before:
        console.info(
            f"{folder} has no record of the data with which the run was started, as an earlier version started it: the "
            "data are not compared, and are recorded from now on"
        )
    compared = {split: _changes(before[split], now[split], index) for split in before.keys() & now.keys()}
    differing = {split: compared[split] for split in splits if split in compared and compared[split].any}
    refused = any(decides(split, changes) for split, changes in differing.items())
    lines = "\n  ".join(_lines(differing))
    if refused and not allowed:
        raise UserError(
            f"the data are not those that the run in {folder} was started with:\n  {lines}\n"
            "Put them back, or start a new run (init_from takes the weights of this one). To continue with the changed "
            f"data, set {ALLOW}; {CHANGES} then records the differences"
        )
    if differing:
        console.warn(
            f"the data are not those that the run was started with ({CHANGES} has all differences):\n  {lines}"
        )
    if any(split != "train" for split in differing):
        console.warn(
            "the best checkpoint so far was selected on the earlier val; metrics from now on are of the changed one"
        )
    _warn_of_touched(compared, console)
    _note(differing, folder)
    if differing or before.keys() != now.keys():
        _save(now, folder)
    return {split: record.digest for split, record in now.items()}


def decides(split: str, changes: SplitChanges) -> bool:
    """Whether changes concern training data, or labels of any split."""
    return changes.of_labels or (split == "train" and changes.any)


def hold_evaluated(
    folder: Path, split: str, manifest: Manifest, index: VideoIndex, allowed: bool, console: "Console"
) -> dict[str, Any] | None:
    """Compares a split to evaluate with the one recorded when the run in `folder` was started; on the main rank.
    Returns the differences as `changes_record` does, or None. Raises `UserError` if labels or training data differ,
    unless `allowed`."""
    path = folder / SPLITS / f"{split}.npz"
    if not path.is_file():
        console.info(f"{folder} has no record of {split} from when the run was started: it is used as it is now")
        return None
    changes = _changes(SplitRecord.open(path), SplitRecord.of(manifest), index)
    _warn_of_touched({split: changes}, console)
    if not changes.any:
        return None
    lines = "\n  ".join(_lines({split: changes}))
    if decides(split, changes) and not allowed:
        raise UserError(
            f"{split} is not what it was when the run in {folder} was started:\n  {lines}\n"
            "Put it back, name other data with dataset=, or set allow_changed=true: the evaluation then records it"
        )
    console.warn(f"{split} is not what it was when the run in {folder} was started:\n  {lines}")
    return changes_record(changes)


def changes_record(changes: SplitChanges) -> dict[str, Any]:
    """The differences as plain data: the count of each kind of change, and up to `RECORDED` names."""
    kinds = changes.kinds()
    return {
        "counts": {kind: len(names) for kind, names in kinds.items()},
        "named": {kind: names[:RECORDED] for kind, names in kinds.items()},
    }


def changed_in_mid_run(folder: Path) -> bool:
    """Whether the run continued with other data than it was started with."""
    return (folder / CHANGES).is_file()


def epoch_steps(folder: Path, counted: int, console: "Console") -> int:
    """The number of steps of an epoch: `counted` or, if the run continued with changed data, the number with which it
    was started, so that schedules stay the same."""
    path = folder / "dataset.json"
    if not changed_in_mid_run(folder) or not path.is_file():
        return counted
    recorded = read_json(path, "it says how many steps an epoch has").get("steps_per_epoch", counted)
    if recorded != counted:
        console.info(f"an epoch keeps the {recorded} steps with which the run was started; its data now give {counted}")
    return recorded


def difference(one: Path, other: Path, split: str) -> str | None:
    """The differences between a split of two runs, as text; None if one of the runs has no record."""
    paths = [folder / SPLITS / f"{split}.npz" for folder in (one, other)]
    if not all(path.is_file() for path in paths):
        return None
    changes = split_changes(SplitRecord.open(paths[0]), SplitRecord.open(paths[1]))
    return "; ".join(_lines_of(changes)) or "no file that both recorded"


def _save(records: Mapping[str, SplitRecord], folder: Path) -> None:
    for split, record in records.items():
        record.save(folder / SPLITS / f"{split}.npz")
    for path in (folder / SPLITS).glob("*.npz"):
        if path.stem not in records:
            path.unlink()


def _changes(before: SplitRecord, now: SplitRecord, index: VideoIndex) -> SplitChanges:
    return split_changes(before, now, _same_content(index))


def _same_content(index: VideoIndex) -> Callable[[str, int, int], bool | None]:
    def same(path: str, size: int, modified: int) -> bool | None:
        known = index.known_digest(path, size, modified)
        try:
            return None if known is None else known == file_digest([path])
        except OSError:  # it was removed or cannot be read: reading it for training reports that
            return None

    return same


def _note(differing: Mapping[str, SplitChanges], folder: Path) -> None:
    ledger = JsonLines(folder / CHANGES)
    for split, changes in differing.items():
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        ledger.append({"time": time, "last_logged_step": last_step(folder), "split": split, **changes_record(changes)})
    ledger.flush()
    ledger.close()


def _lines(differing: Mapping[str, SplitChanges]) -> Iterator[str]:
    for split, changes in differing.items():
        for line in _lines_of(changes):
            yield f"{split}: {line}"


def _lines_of(changes: SplitChanges) -> Iterator[str]:
    for kind, names in changes.kinds().items():
        yield f"{len(names)} {kind}: {shown_some(names, NAMED)}"


def _warn_of_touched(compared: Mapping[str, SplitChanges], console: "Console") -> None:
    for split, changes in compared.items():
        if changes.touched:
            console.warn(
                f"{split}: {pluralize(len(changes.touched), 'file')} of the same size as when the run was started, but "
                f"with another modification time, such as {shown(changes.touched[0])}; their content cannot be "
                "compared any more"
            )
