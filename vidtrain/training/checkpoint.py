"""Checkpoints: writing them atomically, reading them without running code, and choosing the one that a run resumes
from."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.errors import UserError
from vidtrain.files.atomic import flush_folder

if TYPE_CHECKING:  # programs use the file names below before torch, whose import takes seconds
    from torch import Tensor, nn

    from vidtrain.training.distributed import Ranks
    from vidtrain.training.phases import TrainState
    from vidtrain.training.run import Console, Log

FORMAT = "vidtrain/1"


class NotSaved(UserError):
    """A checkpoint could not be written; the earlier ones are unchanged."""


def save(payload: Mapping, path: Path, previous: Path | None = None) -> None:
    """Writes `payload` so that a crash at any instant leaves either the old file or the new one, complete.

    The old file at `path` becomes `previous`, if one is named. Raises `NotSaved` naming the file when it cannot be
    written, for example because the disk is full; the old files stay.
    """
    from vidtrain.files.torch_files import write_torch_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write_torch_file({"format": FORMAT, **payload}, file)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(temporary, path, previous)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        cause = error.strerror or error
        raise NotSaved(f"could not write the checkpoint {path} ({cause}); the previous one is intact") from error


def load(path: Path | str) -> dict:
    """Reads a checkpoint of vidtrain onto the CPU, without running code from it, and verifies its checksums.

    Raises `UserError` naming the file when it is absent, truncated, damaged, malicious or from another program.
    """
    from vidtrain.files.torch_files import read_torch_file

    payload = read_torch_file(Path(path))
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} was not written by vidtrain (its format is not {FORMAT!r})")
    return payload


def restore(model: nn.Module, weights: Mapping[str, Tensor], source: str, left_out: Collection[str] = ()) -> None:
    """Copies `weights` into the model. `weights` must have exactly the names and shapes of the model's tensors, without
    those named in `left_out`, which do not change. Raises `UserError` naming the first tensors that do not match."""
    current = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    wrong = [name for name in current.keys() ^ weights.keys()]
    wrong += [name for name in current.keys() & weights.keys() if current[name].shape != weights[name].shape]
    if wrong:
        some = ", ".join(sorted(wrong)[:6])
        raise UserError(
            f"{source} is a checkpoint of another architecture than the configured model: {len(wrong)} tensors "
            f"are missing, unexpected or of another shape ({some}{', ...' if wrong[6:] else ''})"
        )
    model.load_state_dict(weights, strict=False)


LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
DAMAGED = "damaged_"  # prefix of the name that a damaged checkpoint gets


def step_file(step: int) -> str:
    """The file name of a checkpoint that is never deleted (trainer.keep_every)."""
    return f"step_{step:07d}.pt"


def resumable(folder: Path) -> list[Path]:
    """Files that a run may resume from, not read yet: last.pt, previous.pt, then the step_*.pt, newest first."""
    latest = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    return latest + sorted(folder.glob("step_*.pt"), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in the name of a step_*.pt; -1 if the name holds no number."""
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def put_in_place(temporary: Path, path: Path, previous: Path | None) -> None:
    """Renames `temporary` to `path`; the old file at `path` becomes `previous`, if one is named.

    At every instant `path` is complete, old or new, and `previous` is an older file. On a file system without hard
    links, `path` is absent for an instant, during which `previous` is the old file.
    """
    if previous is not None and path.exists():
        spare = previous.with_name(f".{previous.name}.tmp")
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:
            os.replace(path, previous)
            os.replace(temporary, path)
        else:
            os.replace(temporary, path)
            os.replace(spare, previous)
    else:
        os.replace(temporary, path)
    flush_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that no run uses it again; returns the new path."""
    renamed = path.with_name(DAMAGED + path.name)
    os.replace(path, renamed)
    return renamed


def remove_strays(folder: Path) -> None:
    """Deletes the temporary files of a process that was killed while it saved. The caller must hold the folder's lock,
    so that no other process is saving."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


MAX_FAILED_SAVES = 10  # this many failed saves in a row end the run


class Saver:
    """Writes the checkpoints of a run, on rank 0. If the disk is full, a checkpoint is skipped and the run goes on.

    The log rows up to a checkpoint's step, and the best weights, are written before the checkpoint itself. So none of
    them is missing when a run resumes from it. Every checkpoint holds `metadata`.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, Any], ranks: Ranks, log: Log, console: Console):
        self._folder = folder
        self._metadata = metadata
        self._ranks = ranks
        self._log = log
        self._console = console
        self._unsaved_best: dict[str, Any] | None = None
        self._failed = 0  # saves that failed in a row
        self._newest: int | None = None  # step of the last checkpoint that this process wrote
        if ranks.is_main:
            remove_strays(folder)

    def best(self, payload: Mapping[str, Any]) -> None:
        """Writes best.pt. If that fails, keeps a copy of the weights in memory and writes it before the next
        checkpoint."""
        if not self._ranks.is_main:
            return
        self._unsaved_best = {**self._metadata, **payload}
        try:
            self._write_best()
        except NotSaved as error:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in payload["model"].items()}
            self._unsaved_best = {**self._metadata, **payload, "model": weights}
            self._console.warn(f"{error}. These weights are kept in memory and written with the next checkpoint")

    def save(self, payload: Mapping[str, Any], unwritten: Sequence[str | None], keep: bool, required: bool) -> bool:
        """Writes last.pt, after the old one has become previous.pt, and with `keep` also a step_*.pt; returns whether
        it succeeded.

        `unwritten` holds for each rank the reason why its log rows are not on the disk, or None. With any reason,
        nothing is saved. A failure is a warning, which the metrics count as checkpoint/failed; the next call tries
        again. Raises `UserError` on every rank if saving a `required` checkpoint fails, and after `MAX_FAILED_SAVES`
        failures in a row.
        """
        return self._ranks.on_main(lambda: self._save(payload, unwritten, keep, required))

    def _save(self, payload: Mapping[str, Any], unwritten: Sequence[str | None], keep: bool, required: bool) -> bool:
        step = payload["state"]["total_step"]
        try:
            for rank, reason in enumerate(unwritten):
                if reason is not None:
                    raise NotSaved(f"no checkpoint at step {step}: log rows of rank {rank} are not written ({reason})")
            self._write_best()
            content = {**self._metadata, **payload}
            if keep:
                save(content, self._folder / step_file(step))
            save(content, self._folder / LAST, self._folder / PREVIOUS)
        except NotSaved as error:
            self._failed += 1
            self._log.log({"checkpoint/failed": self._failed}, step)
            self._raise_or_warn(str(error), step, required)
        else:
            if self._failed:
                self._console.info(f"step {step}: the checkpoint is written, after {self._failed} failures")
            self._failed, self._newest = 0, step
        return self._newest == step

    def _raise_or_warn(self, error: str, step: int, required: bool) -> None:
        saved = resumable(self._folder)
        newest = "no checkpoint was saved before" if not saved else "the newest checkpoint is unchanged"
        if self._newest is not None:
            newest = f"the newest checkpoint is of step {self._newest}"
        if required:
            raise UserError(
                f"{error}\nTraining is done at step {step}, but its last checkpoint could not be saved; {newest}. Free "
                "some space and resume with run_dir=: the run repeats the steps since, and ends with the same weights"
            )
        if self._failed >= MAX_FAILED_SAVES:
            raise UserError(
                f"{error}\n{self._failed} checkpoints in a row could not be written, the last at step {step}; "
                f"{newest}. Free some space and resume with run_dir="
            )
        self._console.warn(
            f"step {step}: {error}. The run goes on and tries again with the next checkpoint (failure {self._failed} "
            f"in a row; {MAX_FAILED_SAVES} end the run)"
        )

    def _write_best(self) -> None:
        if self._unsaved_best is not None:
            save(self._unsaved_best, self._folder / BEST)
            self._unsaved_best = None


# --- the checkpoint that a run resumes from, and the weights that it reports ------------------------------

RESUME_KEYS = ("model", "state", "optimizer", "sums")


def find_resume(folder: Path, ranks: Ranks, console: Console) -> tuple[Path, dict[str, Any]] | None:
    """Path and content of the newest intact checkpoint in `folder`, on every rank; None if the folder holds none at
    all.

    A damaged checkpoint is renamed, so that it never replaces a good one, and the console names it with its cause.
    Raises `UserError` on every rank, naming each cause, if all checkpoints are damaged: a run never restarts from
    scratch by itself.
    """
    loaded: list[dict[str, Any]] = []  # the checkpoint's content, read on this rank

    def choose() -> tuple[Path, list[str]] | None:
        newest = _newest(folder)
        if newest is None:
            return None
        path, payload, warnings = newest
        loaded.append(payload)
        return path, [*warnings, *_best_warnings(folder, payload)]

    chosen = ranks.on_main(choose)
    if chosen is None:
        return None
    path, warnings = chosen
    for warning in warnings:
        console.warn(warning)
    own_error = None if ranks.is_main else _error_message(lambda: loaded.append(_load_resumable(path)))
    errors = [message for message in ranks.gather_objects(own_error) if message is not None]
    if errors:
        raise UserError(errors[0])
    return path, loaded[0]


def _newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """Path and content of the newest intact checkpoint, and warnings about damaged ones."""
    candidates = resumable(folder)
    if not candidates:
        return None
    newest: tuple[Path, dict[str, Any]] | None = None
    damaged: dict[Path, str] = {}
    for path in candidates:
        # last.pt is always newer than previous.pt; a step_*.pt is read only if it is newer than what is loaded
        is_step_file = path.name not in (LAST, PREVIOUS)
        if newest is not None and not (is_step_file and step_of(path) > newest[1]["state"]["total_step"]):
            continue
        try:
            newest = path, _load_resumable(path)
        except UserError as error:
            damaged[path] = str(error)
    if newest is None:
        causes = "".join(f"\n  {cause}" for cause in damaged.values())
        raise UserError(
            f"none of the checkpoints in {folder} can be used, and a run does not start from scratch by itself:"
            f"{causes}\nReplace one of them with a good copy. If there is none, start a new run in another run_dir; "
            f"if best.pt is good, init_from={folder / BEST} starts from its weights"
        )
    path, payload = newest
    warnings = [f"skipped {bad.name}, and renamed it {set_aside(bad).name}: {cause}" for bad, cause in damaged.items()]
    if warnings:
        step = payload["state"]["total_step"]
        warnings.append(f"resuming from {path.name} instead, at step {step}: the steps since are repeated")
    return path, payload, warnings


def _load_resumable(path: Path) -> dict[str, Any]:
    payload = load(path)
    absent = [key for key in RESUME_KEYS if key not in payload]
    if absent:
        raise UserError(
            f"checkpoint {path} lacks {', '.join(absent)}: it holds weights, but not the state to resume from"
        )
    return payload


def _best_warnings(folder: Path, payload: Mapping[str, Any]) -> list[str]:
    """A warning if the run's best.pt is absent or damaged, so that the user learns it before hours of training."""
    best, path = payload["state"]["best"], folder / BEST
    if best is None:
        return []
    from vidtrain.files.torch_files import verify

    problem = _error_message(lambda: verify(path)) if path.is_file() else f"checkpoint {path} does not exist"
    if problem is None:
        return []
    return [f"{problem}. Unless a later evaluation is better than {best:.4f}, this run has no weights to report"]


def _error_message(action: Callable[[], object]) -> str | None:
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def load_best(path: Path, state: TrainState) -> dict[str, Any]:
    """The content of best.pt at the end of a run. Raises `UserError` if it is damaged or not the checkpoint that val
    selected, because a run reports the selected weights or nothing."""
    selected = f"weights of step {state.best_step}, which val selected ({state.best:.4f}),"
    try:
        best = load(path)
    except UserError as error:
        problem = str(error)
    else:
        if best["state"]["best_step"] == state.best_step:
            return best
        problem = f"checkpoint {path} is of step {best['state']['best_step']}"
    raise UserError(
        f"{problem}. The {selected} are lost, so nothing is reported. Training is done: replace the file with a good "
        "copy and resume with run_dir=, or report the last weights with python -m vidtrain.evaluate "
        f"checkpoint={path.with_name(LAST)}"
    )
