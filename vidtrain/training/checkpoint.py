"""Checkpoints: never half-written, never run as code, never loaded without saying what fitted."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.torch_files import read_torch_file

FORMAT = "vidtrain/1"


def save(payload: Mapping, path: Path) -> None:
    """Writes `payload` so that a crash at any instant leaves the old file or the new one, whole.

    Raises `UserError` naming the file when it cannot be written (a full disk, say); the old one stays.
    """
    payload = {"format": FORMAT, **payload}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"could not write the checkpoint {path}: {error}; the previous one is intact"
        ) from error


def _flush_folder(folder: Path) -> None:
    """A rename lives in the folder: it survives a power cut only once the folder is flushed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path | str) -> dict:
    """Reads a checkpoint of ours onto the CPU, without running any code that it may hold.

    Raises `UserError` naming the file when it is absent, truncated, malicious or of another program.
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
