"""Which checkpoint a run goes on from, and which weights it reports."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.torch_files import verify
from vidtrain.training import checkpoint
from vidtrain.training.checkpoint import BEST, LAST, PREVIOUS, resumable, set_aside, step_of
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.run import Console
from vidtrain.training.state import TrainState

NEEDED = ("model", "state", "optimizer", "sums")


def find_resume(folder: Path, ranks: Ranks, console: Console) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in `folder` that verifies, with its path, on every rank; None where there is none at all.

    Those passed over are named on the console with their causes, and renamed, so that none takes the place of a good
    one. Raises `UserError` on every rank, naming each cause, where there are checkpoints and none verifies: nothing
    starts from scratch by itself.
    """
    loaded: list[dict[str, Any]] = []  # on this rank

    def choose() -> tuple[Path, list[str]] | None:
        newest = _newest(folder)
        if newest is None:
            return None
        path, payload, warnings = newest
        loaded.append(payload)
        return path, [*warnings, *_lost_best(folder, payload)]

    chosen = ranks.on_main(choose)
    if chosen is None:
        return None
    path, warnings = chosen
    for warning in warnings:
        console.warn(warning)
    refusal = None if ranks.is_main else _refusal(lambda: loaded.append(_load_whole(path)))
    refusals = [refusal for refusal in ranks.gather_objects(refusal) if refusal is not None]
    if refusals:
        raise UserError(refusals[0])
    return path, loaded[0]


def _newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest checkpoint that verifies, and warnings of those that were passed over."""
    candidates = resumable(folder)
    if not candidates:
        return None
    newest: tuple[Path, dict[str, Any]] | None = None
    damaged: dict[Path, str] = {}
    for path in candidates:
        # last.pt is newer than previous.pt; of those kept for good the name says the step
        kept = path.name not in (LAST, PREVIOUS)
        if newest is not None and not (kept and step_of(path) > newest[1]["state"]["total_step"]):
            continue
        try:
            newest = path, _load_whole(path)
        except UserError as error:
            damaged[path] = str(error)
    if newest is None:
        causes = "".join(f"\n  {cause}" for cause in damaged.values())
        raise UserError(
            f"none of the checkpoints in {folder} can be used, and a run does not start from scratch by itself:"
            f"{causes}\nPut a good copy of one in its place. If there is none, start a new run in another run_dir; "
            f"where best.pt is good, init_from={folder / BEST} takes its weights"
        )
    path, payload = newest
    warnings = [
        f"passed over {bad.name}, and renamed it {set_aside(bad).name}: {cause}"
        for bad, cause in damaged.items()
    ]
    if warnings:
        step = payload["state"]["total_step"]
        warnings.append(f"resuming from {path.name} instead, at step {step}: the steps since are taken again")
    return path, payload, warnings


def _load_whole(path: Path) -> dict[str, Any]:
    payload = checkpoint.load(path)
    absent = [key for key in NEEDED if key not in payload]
    if absent:
        raise UserError(
            f"checkpoint {path} lacks {', '.join(absent)}: it holds weights, and not where a run stands"
        )
    return payload


def _lost_best(folder: Path, payload: Mapping[str, Any]) -> list[str]:
    """A warning where the weights that val selected so far are no more: at once, not after hours of training."""
    best, path = payload["state"]["best"], folder / BEST
    if best is None:
        return []
    lost = _refusal(lambda: verify(path)) if path.is_file() else f"checkpoint {path} is not there"
    if lost is None:
        return []
    return [
        f"{lost}. Unless a later evaluation is better than {best:.4f}, this run will have no weights to report"
    ]


def _refusal(action: Callable[[], object]) -> str | None:
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def load_best(path: Path, state: TrainState) -> dict[str, Any]:
    """The checkpoint that val selected, at the end of a run. Raises `UserError` where it is damaged, or another: the
    number that is reported is that of the weights that were selected, or none."""
    selected = f"weights of step {state.best_step}, which val selected ({state.best:.4f}),"
    try:
        best = checkpoint.load(path)
    except UserError as error:
        refusal = str(error)
    else:
        if best["state"]["best_step"] == state.best_step:
            return best
        refusal = f"checkpoint {path} is of step {best['state']['best_step']}"
    raise UserError(
        f"{refusal}. The {selected} are lost, and nothing is reported. Training is done: put a good copy in its place "
        "and resume with run_dir=, or report the last weights with python -m vidtrain.evaluate "
        f"checkpoint={path.with_name(LAST)}"
    )
