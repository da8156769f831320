"""Checkpoints: never half-written, never run as code, never loaded without saying what fitted."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.files.torch_files import read_torch_file, write_torch_file
from vidtrain.training.checkpoints.files import put_in_place

FORMAT = "vidtrain/1"


class NotSaved(UserError):
    """A checkpoint that could not be written; those of before are as they were."""


def save(payload: Mapping, path: Path, previous: Path | None = None) -> None:
    """Writes `payload` so that a crash at any instant leaves the old file or the new one, whole.

    What stood at `path` becomes `previous`, if one is named. Raises `NotSaved` naming the file when it cannot be
    written (a full disk, say); the old ones stay.
    """
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
        raise NotSaved(
            f"could not write the checkpoint {path} ({cause}); the previous one is intact"
        ) from error


def load(path: Path | str) -> dict:
    """Reads a checkpoint of ours onto the CPU, without running any code that it may hold, and verifies its checksums.

    Raises `UserError` naming the file when it is absent, truncated, damaged, malicious or of another program.
    """
    payload = read_torch_file(Path(path))
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} was not written by vidtrain (its format is not {FORMAT!r})")
    return payload


def restore(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies `weights` that must fit exactly; raises `UserError` naming the first that do not."""
    own = model.state_dict()
    wrong = [name for name in own.keys() ^ weights.keys()]
    wrong += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if wrong:
        some = ", ".join(sorted(wrong)[:6])
        raise UserError(
            f"{source} is a checkpoint of another architecture than the configured model: {len(wrong)} tensors "
            f"are missing, unexpected or of another shape ({some}{', ...' if wrong[6:] else ''})"
        )
    model.load_state_dict(weights)
