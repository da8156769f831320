"""Checkpoints: never half-written, never run as code, never loaded without saying what fitted."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vidtrain.errors import UserError

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
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"checkpoint {path} is truncated or not a checkpoint (no complete PyTorch archive)")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {culprit[1]}" if culprit else str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} is refused: it holds objects other than tensors and plain data, and "
            f"unpickling those can run code ({reason})"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise UserError(f"checkpoint {path} is damaged: {error}") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} was not written by vidtrain (its format is not {FORMAT!r})")
    return payload


@dataclass
class LoadReport:
    """What of a state dict found its place, by parameter name."""

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # a head for other classes: left as initialized
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line per kind that is not empty: how many, and the first names."""
        rows = []
        for kind in ("loaded", "skipped", "missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                shown = (
                    "" if kind == "loaded" else ": " + ", ".join(names[:6]) + (", ..." if names[6:] else "")
                )
                rows.append(f"{kind} {len(names)}{shown}")
        return rows


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, min_match: float
) -> LoadReport:
    """Copies `weights` into `model` by name and shape, leaving out a head that was for other classes.

    Raises `UserError` with the report, before anything is copied, when less than `min_match` of the
    encoder's tensors find their place.
    """
    found = LoadReport()
    own = model.state_dict()
    fitting = {}
    for name, tensor in weights.items():
        if name not in own:
            found.unexpected.append(name)
        elif own[name].shape == tensor.shape:
            found.loaded.append(name)
            fitting[name] = tensor
        elif name.startswith("head."):
            found.skipped.append(f"{name} {list(tensor.shape)} for {list(own[name].shape)}")
        else:
            found.mismatched.append(f"{name} {list(tensor.shape)} for {list(own[name].shape)}")
    found.missing = [name for name in own if name not in weights]
    encoder = [name for name in own if name.startswith("encoder.")]
    match = sum(name in fitting for name in encoder) / max(1, len(encoder))
    if match < min_match:
        raise UserError(
            f"{source} fits {match:.0%} of the encoder's tensors, below init_match={min_match:.0%}: is it a "
            "checkpoint of another architecture?\n  " + "\n  ".join(found.lines())
        )
    model.load_state_dict(fitting, strict=False)
    return found


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
