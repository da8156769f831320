"""What a checkpoint says of the adapters of its model, and of the base: weights that it names and does not hold.

Where the frozen weights of an adapted model come from published files, its checkpoints hold the other tensors alone:
adapters, head, and what else trains. They name those files by path and SHA-256, and the model is built by loading these
again. Where the frozen weights come from no file, as those that were initialized at random do, checkpoints hold them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.lora import add_adapters

KEYS = ("lora", "base")  # of a checkpoint


@dataclass(frozen=True)
class BaseFile:
    """A file or folder of weights: the name that the user gave, where it lies, and its `files.content_hash`.

    With the `stamp` (`files.stamp`) that it had when it was hashed it counts as unchanged, as hashing gigabytes takes
    seconds. Checkpoints from before have none.
    """

    source: str
    path: str
    sha256: str
    stamp: str = ""


@dataclass(frozen=True)
class Base:
    """The `files` of weights that were loaded into a model, in this order, and the `tensors` of the model that are as
    they were loaded, by name."""

    files: tuple[BaseFile, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model, by the arguments of `add_adapters`, and the base that its checkpoints leave out."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | None
    base: Base | None = None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def left_out(self) -> frozenset[str]:
        """The tensors of the model that its checkpoints do not hold."""
        return frozenset() if self.base is None else frozenset(self.base.tensors)

    def add_to(self, model: EncoderWithHead, seed: int = 0) -> list[str]:
        """Gives the encoder of `model` these adapters; the names of the layers that have them."""
        return add_adapters(model.encoder, self.rank, self.alpha, self.dropout, self.targets, seed)

    def payload(self) -> dict[str, Any]:
        """What a checkpoint holds of this, under `KEYS`."""
        targets = None if self.targets is None else list(self.targets)
        lora = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout, "targets": targets}
        if self.base is None:
            return {"lora": lora, "base": None}
        files = [asdict(file) for file in self.base.files]
        return {"lora": lora, "base": {"files": files, "tensors": list(self.base.tensors)}}

    @classmethod
    def of(cls, payload: Mapping[str, Any], checkpoint: Path) -> Self | None:
        """What a checkpoint says; None where its model has no adapters. Raises `UserError` where it is damaged."""
        if "lora" not in payload or payload["lora"] is None:
            return None
        try:
            lora, stored = payload["lora"], payload["base"]
            base = None
            if stored is not None:
                files = tuple(
                    BaseFile(**{key: str(text) for key, text in file.items()}) for file in stored["files"]
                )
                base = Base(files, tuple(map(str, stored["tensors"])))
            targets = None if lora["targets"] is None else tuple(map(str, lora["targets"]))
            adapters = cls(int(lora["rank"]), float(lora["alpha"]), float(lora["dropout"]), targets, base)
            if adapters.rank < 1 or not math.isfinite(adapters.alpha):
                raise ValueError(f"rank {adapters.rank}, alpha {adapters.alpha}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"checkpoint {checkpoint} is damaged, or was changed: what it says of adapters is none ({error!r})"
            ) from error
        return adapters
