"""A folder of tar files, here or at a URL, as `python -m vidtrain.prepare shards=1GiB` packs a dataset."""

import json
from dataclasses import dataclass
from typing import Any

from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import SPLITS
from vidtrain.data.prepared.shards import HEAD, SHARDS_FORMAT
from vidtrain.data.sources.listings import Listing
from vidtrain.data.stores.files import ask_statuses, file_status, open_binary
from vidtrain.data.stores.places import check_no_secret, joined
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_some


@dataclass(frozen=True)
class Shards:
    """The dataset that was packed into the tar files of `folder`, in the same order: splits, classes, groups, cuts.

    Raises `UserError` for a URL that holds a secret, and `manifests` where tar files are missing or cut, or the folder
    holds something else.
    """

    folder: str

    def __post_init__(self) -> None:
        check_no_secret(self.folder, "dataset.folder")

    def inputs(self) -> list[str]:
        return [self._at(HEAD), *(self._at(f"{split}.csv") for split in self._head()["splits"])]

    def manifests(self) -> dict[str, Manifest]:
        head = self._head()
        self._check_shards({str(shard["name"]): shard["bytes"] for shard in head["shards"]})
        settings: dict[str, Any] = {"delimiter": "comma", "header": True, "label_kind": "names"}
        settings |= {split: self._at(f"{split}.csv") for split in SPLITS if split in head["splits"]}
        settings |= {key: head[key] for key in ("classes", "label_separator")}
        without_val = None if "val" in head["splits"] else 0  # as of videos without labels
        return Listing(**settings, val_share=without_val).manifests()

    def _at(self, name: str) -> str:
        return joined(self.folder, name)

    def _head(self) -> dict[str, Any]:
        path = self._at(HEAD)
        try:
            with open_binary(path) as file:
                head = json.load(file)
            needed = {"format", "classes", "label_separator", "splits", "shards"}
            if not needed <= head.keys() or head["format"] != SHARDS_FORMAT or "train" not in head["splits"]:
                raise ValueError("it is of another format")
        except FileNotFoundError as error:
            way = "python -m vidtrain.prepare shards=1GiB out=FOLDER"
            raise UserError(f"there is no {path}: dataset.folder must be one that {way} has made") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}): pack the dataset again, or copy it anew"
            ) from error
        return head

    def _check_shards(self, sizes: dict[str, int]) -> None:
        paths = {name: self._at(name) for name in sizes}
        ask_statuses(paths.values())
        faults = []
        for name, path in paths.items():
            try:
                size = file_status(path).size
            except OSError as error:
                faults.append(f"{path}: {error.strerror}")
                continue
            if size != sizes[name]:
                faults.append(
                    f"{path} has {size} bytes, not {sizes[name]}: it is cut, compressed, or another"
                )
        if faults:
            count = f"{len(faults)} of {len(sizes)} tar files are not those of {HEAD}"
            raise UserError(f"{count}: {shown_some(faults, 5)}; copy them anew")
