"""A source for a folder of tar files, on disk or at a URL, from `python -m vidtrain.prepare shards=1GiB` or
elsewhere."""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import SPLITS, complete
from vidtrain.data.prepared.shards import HEAD, SHARDS_FORMAT
from vidtrain.data.sources.folders import SUFFIXES
from vidtrain.data.sources.labels import LabelReader
from vidtrain.data.sources.listing_format import LABEL_WORDS
from vidtrain.data.sources.listings import Listing
from vidtrain.data.stores.archives import PackedSample, packed_samples
from vidtrain.data.stores.files import ask_statuses, exists, file_status, open_binary
from vidtrain.data.stores.objects import objects_at
from vidtrain.data.stores.places import check_no_secret, is_url, joined, relative
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown, shown_some

LABELS = ("cls", "json", "txt", "folder", "none")
ARCHIVES_AT_ONCE = 16
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")  # train-{000000..000127}.tar, as WebDataset writes it
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
SPLIT_NAME = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")
UNLABELED = "unlabeled"


@dataclass(frozen=True)
class Shards:
    """The videos in the tar files of `folder`, which may be a URL, or a name with numbers as x-{000..127}.tar.

    Tar files from `vidtrain.prepare` contain the packed dataset in the same order: splits, classes, groups, starts and
    ends. Tar files from elsewhere must have WebDataset's names. Such a file belongs to the split that its path names,
    or to train; `val_share` of train is held out for val, drawn from `seed`. `labels` is the place of a video's label,
    one of `LABELS`: the member with the video's name and the suffix .cls, .json (under `label_key`, or one of the usual
    keys) or .txt, or the name of its folder; null takes the first of these that the first video has. Classes and
    several labels are as in a `Listing`.

    Raises `UserError` for a URL that contains a secret; `manifests` raises it if tar files are missing, truncated or
    compressed, or a video has no label.
    """

    folder: str
    labels: str | None = None
    label_key: str | None = None
    label_separator: str | None = None
    classes: str | Sequence[str] | None = None
    val_share: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_no_secret(self.folder, "dataset.folder")
        if self.labels not in (None, *LABELS):
            raise UserError(f"dataset.source.labels={self.labels}: choose one of {', '.join(LABELS)}, or null")

    def inputs(self) -> list[str]:
        if not self._is_ours():
            paths = self._archives
            ask_statuses(paths)
            return [*paths, *([self.classes] if isinstance(self.classes, str) else [])]
        return [self._at(HEAD), *(self._at(f"{split}.csv") for split in self._head["splits"])]

    def manifests(self) -> dict[str, Manifest]:
        if not self._is_ours():
            return self._foreign()
        head = self._head
        self._check_shards({str(shard["name"]): shard["bytes"] for shard in head["shards"]})
        settings: dict[str, Any] = {"delimiter": "comma", "header": True, "label_kind": "names"}
        settings |= {split: self._at(f"{split}.csv") for split in SPLITS if split in head["splits"]}
        settings |= {key: head[key] for key in ("classes", "label_separator")}
        without_val = None if "val" in head["splits"] else 0  # videos without labels
        return Listing(**settings, val_share=without_val).manifests()

    def _at(self, name: str) -> str:
        return joined(self.folder, name)

    def _is_ours(self) -> bool:
        return not NUMBERS.search(self.folder) and exists(self._at(HEAD))

    @cached_property
    def _head(self) -> dict[str, Any]:
        path = self._at(HEAD)
        try:
            with open_binary(path) as file:
                head = json.load(file)
            needed = {"format", "classes", "label_separator", "splits", "shards"}
            if not needed <= head.keys() or head["format"] != SHARDS_FORMAT or "train" not in head["splits"]:
                raise ValueError("it is of another format")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): pack the dataset again, or copy it again") from error
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
                    f"{path} has {size} bytes, not {sizes[name]}: it is incomplete, compressed, or another file"
                )
        if faults:
            count = f"{len(faults)} of {len(sizes)} tar files are not those of {HEAD}"
            raise UserError(f"{count}: {shown_some(faults, 5)}; copy them again")

    # --- tar files from elsewhere ------------------------------------------------------------------------------

    @cached_property  # listing many in a store is slow
    def _archives(self) -> list[str]:
        """The tar files of `folder`."""
        if numbers := NUMBERS.search(self.folder):
            first, last = numbers.groups()
            names = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
            return [self.folder.replace(numbers[0], name) for name in names]
        why = ""
        try:
            found = objects_at(self.folder) if is_url(self.folder) else map(str, Path(self.folder).rglob("*"))
        except OSError as error:
            found, why = [], f" ({error.strerror})"
        paths = sorted(path for path in found if path.endswith(".tar"))
        if not paths:
            raise UserError(
                f"dataset.folder={self.folder} has neither {HEAD} nor a tar file{why}: name a folder of tar files, "
                "such as one from python -m vidtrain.prepare shards=1GiB out=FOLDER; if a store cannot list its names, "
                "set 'dataset.folder=\"URL/train-{000000..000127}.tar\"'"
            )
        return paths

    def _foreign(self) -> dict[str, Manifest]:
        archives: dict[str, list[str]] = {}
        folder = os.path.dirname(self.folder) if NUMBERS.search(self.folder) else self.folder
        for path in self._archives:
            name = SPLIT_NAME.findall(relative(path, folder).lower())
            archives.setdefault(SPLIT_NAMES[name[-1]] if name else "train", []).append(path)
        if "train" not in archives:
            raise UserError(f"dataset.folder={self.folder}: its tar files are named {', '.join(archives)}, none train")
        reader, manifests = LabelReader(None, self.classes, self.label_separator, splits=True), {}
        look = partial(packed_samples, endings=SUFFIXES, beside=LABELS[:3])
        where = self.labels
        for split in (split for split in SPLITS if split in archives):
            with ThreadPoolExecutor(ARCHIVES_AT_ONCE) as threads:
                samples = [sample for part in threads.map(look, archives[split]) for sample in part]
            if not samples:
                raise UserError(f"there are no videos in the tar files of {split}, such as {archives[split][0]}")
            where = where or _where_labels_stand(samples[0])
            manifests[split] = self._manifest(samples, where, reader)
        return complete(manifests, self.val_share, self.seed)

    def _manifest(self, samples: Sequence[PackedSample], where: str, reader: LabelReader) -> Manifest:
        faults: list[str] = []

        def complain(place: int, why: str) -> None:
            faults.append(f"{shown(samples[place].video)}: {why}")

        texts = [_label(sample, where, self.label_key, self.label_separator) for sample in samples]
        numbers, counts = reader.read(texts, complain)
        if faults:
            kind = f"dataset.source.labels={where}, which may be one of {', '.join(LABELS)}"
            raise UserError(f"{len(faults)} labels cannot be read ({kind}): {shown_some(faults, 5)}")
        builder = ColumnsBuilder(reader.multi_label)
        builder.extend([sample.video for sample in samples], numbers, label_counts=counts)
        return Manifest(*reader.settle(builder.build()))


def _where_labels_stand(sample: PackedSample) -> str:
    return next((kind for kind in LABELS[:3] if _label(sample, kind, None, "|")), "folder")


def _label(sample: PackedSample, where: str, key: str | None, separator: str | None) -> str:
    """The label of a video as text, empty if it has none."""
    if where == "none":
        return UNLABELED
    if where == "folder":
        return os.path.basename(os.path.dirname(sample.key))
    text = sample.texts.get(where, "")
    if where != "json":
        return text.strip()
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return ""
    if not isinstance(content, dict):
        return ""
    value = next((content[name] for name in ([key] if key else LABEL_WORDS) if name in content), "")
    return (separator or "|").join(map(str, value)) if isinstance(value, list) else str(value)
