"""The file of embeddings, with one vector, path, split, group and labels for each video; and exports for other
tools."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.errors import UserError
from vidtrain.files.atomic import replacing_path, strict_json, write_text_atomic
from vidtrain.files.escaping import is_utf8

FORMAT = "vidtrain-embeddings/1"
FILE = "embeddings.npz"
PROGRESS = "embeddings.partial"
PICTURES = "pictures"  # the folder beside the file, with NNNNNN.webp by row
UNLABELED = -1
SHARED_FIELDS = ("classes", "encoder")  # fields without an entry for each video
REMEDY = "make it again with python -m vidtrain.embed"


@dataclass(frozen=True)
class Embeddings:
    """`vectors` float32 [v d] of v videos, as the arrays of an .npz file.

    `paths`, `splits` and `groups` are text [v]; videos of a group stay together. `labels` int64 [v] are numbers of
    `classes` [k], -1 for none; uint8 [v k] of 0 and 1 where videos may have several. `starts` and `ends` float64 [v]
    are seconds, NaN if the whole file is meant. `encoder` holds digests of its weights and of the protocol of its
    clips, which comparable vectors share, and describes both.
    """

    vectors: np.ndarray
    paths: np.ndarray
    splits: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    encoder: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    def names_of(self, row: int) -> list[str]:
        """The names of a video's labels."""
        if self.multi_label:
            return self.classes[self.labels[row] > 0].tolist()
        return [] if self.labels[row] == UNLABELED else [str(self.classes[self.labels[row]])]

    def take(self, rows: np.ndarray) -> "Embeddings":
        """The videos of `rows`, int64 [n] or bool [v]."""
        names = [field.name for field in fields(self) if field.name not in SHARED_FIELDS]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def of_split(self, split: str) -> np.ndarray:
        """The rows of a split, int64 [n]. Raises `UserError` if it has none."""
        rows = np.flatnonzero(self.splits == split)
        if not len(rows):
            known = ", ".join(sorted(set(self.splits.tolist())))
            raise UserError(f"split={split}: the embeddings have no video of it, but of {known}")
        return rows

    def manifest(self) -> Manifest:
        """The videos, of one label each, as a manifest."""
        cuts = [[None if np.isnan(time) else float(time) for time in times] for times in (self.starts, self.ends)]
        records = [
            Record(str(path), int(label), str(group), start=start, end=end)
            for path, label, group, start, end in zip(self.paths, self.labels, self.groups, *cuts, strict=True)
        ]
        return Manifest(records, self.classes.tolist())

    def check_comparable(self, encoder: Mapping[str, Any], name: str) -> None:
        """Raises `UserError` if these embeddings, from the file `name`, are of another encoder than `encoder`, or of
        other clips."""
        for key, what in (("weights", "another encoder"), ("protocol", "other clips")):
            if self.encoder[key] != encoder[key]:
                raise UserError(
                    f"{name} holds vectors of {what}, which cannot be compared: {self.encoder['source']}, "
                    f"{self.encoder['clips']}; the others are of {encoder['source']}, {encoder['clips']}"
                )

    def save(self, path: Path) -> None:
        """Writes the .npz file; a crash leaves either the old or the new one."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "encoder"}
        about = np.array(strict_json({"format": FORMAT, "encoder": dict(self.encoder)}))
        with replacing_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, about=about, **arrays)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def open(cls, named: str) -> "Embeddings":
        """Reads the file `named`, or the file in the folder `named`.

        Raises `UserError` naming it if it is absent, damaged, cut or of another kind.
        """
        path = Path(named)
        path = path / FILE if path.is_dir() else path
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                if about["format"] != FORMAT:
                    raise UserError(f"{path} has format {about['format']} instead of {FORMAT}; {REMEDY}")
                names = [field.name for field in fields(cls) if field.name != "encoder"]
                embeddings = cls(**{name: file[name] for name in names}, encoder=about["encoder"])
        except FileNotFoundError as error:
            why = "there is no such file or folder; python -m vidtrain.embed makes embeddings"
            raise UserError(f"{path}: {why}") from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no embeddings, or is damaged ({error}); {REMEDY}") from error
        embeddings._check(path)
        return embeddings

    def _check(self, path: Path) -> None:
        names = [field.name for field in fields(self) if field.name not in SHARED_FIELDS]
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path} was cut: its columns have different lengths ({lengths}); {REMEDY}")
        if self.vectors.ndim != 2 or not len(self) or not np.isfinite(self.vectors).all():
            raise UserError(f"{path}: its vectors {self.vectors.shape} are empty or not finite; {REMEDY}")
        if not self.multi_label and len(self.labels) and self.labels.max() >= len(self.classes):
            raise UserError(f"{path}: a label has no class of the {len(self.classes)}; {REMEDY}")


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of one encoder with the same classes, one after the other."""
    names = [field.name for field in fields(Embeddings) if field.name not in SHARED_FIELDS]
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **columns)


class Progress:
    """A file to which each vector is appended, so that a killed call continues.

    `settings` are the plain values on which vectors depend; a file with other settings is replaced. `rows` are (number
    of the split, number of the video in it, vector) in order of computation.
    """

    def __init__(self, path: Path, settings: object):
        key = hashlib.blake2b(strict_json(settings).encode(), digest_size=16).hexdigest()
        self.rows: list[tuple[int, int, np.ndarray]] = []
        end = 0  # of the last complete row
        try:
            with open(path, "rb") as file:
                if str(np.load(file)) == key:
                    end = file.tell()
                while end:
                    split, video = np.load(file).tolist()
                    self.rows.append((split, video, np.load(file)))
                    end = file.tell()
        except (OSError, ValueError, EOFError):  # no file yet, or its end
            pass
        if not end:
            path.write_bytes(b"")
        self._file = open(path, "r+b")  # noqa: SIM115, as it stays open
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            np.save(self._file, np.array(key))

    def pending(self, split: int, videos: int) -> np.ndarray:
        """The numbers of the `videos` of a split that are not there yet, int64 [n]."""
        return np.setdiff1d(np.arange(videos), [video for number, video, _ in self.rows if number == split])

    def add(self, split: int, video: int, vector: np.ndarray) -> None:
        np.save(self._file, np.array([split, video]))
        np.save(self._file, vector)
        self._file.flush()
        self.rows.append((split, video, vector))

    def close(self) -> None:
        self._file.close()


# --- exports with labels, splits and embeddings for other tools -----------------------------------------------
#
# Parquet: a row for each video, for pandas, polars and DuckDB. FiftyOne: a folder for
# `fiftyone.Dataset.from_dir(dataset_dir=..., dataset_type=fiftyone.types.FiftyOneDataset)`, in the form without a
# version (plain JSON). Label Studio: tasks for its import (Label Studio JSON format), and their labeling configuration.

EMBEDDING = "embedding"  # the field of FiftyOne's samples
LOCAL_FILES = "/data/local-files/?d="  # how Label Studio's local storage names a file below its document root


def write_fiftyone(embeddings: Embeddings, folder: Path) -> None:
    """Writes `folder`/metadata.json, samples.json, and an empty frames.json; videos stay where they are.

    A sample has the tags of its split, its labels as `ground_truth`, and its vector as the list `embedding`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for row in range(len(embeddings)):
        names = embeddings.names_of(row)
        several = [{"_cls": "Classification", "label": name} for name in names]
        truth: Any = several[0] if several else None
        if embeddings.multi_label:
            truth = {"_cls": "Classifications", "classifications": several}
        samples.append(
            {
                "filepath": str(embeddings.paths[row]),
                "tags": [str(embeddings.splits[row])],
                "frames": "frames.json",
                "ground_truth": truth,
                "group_name": str(embeddings.groups[row]),
                "start_s": float(embeddings.starts[row]),  # null if the whole file is meant, as JSON has no NaN
                "end_s": float(embeddings.ends[row]),
                EMBEDDING: embeddings.vectors[row].astype(float).round(6).tolist(),
            }
        )
    info = {"classes": embeddings.classes.tolist(), "encoder": dict(embeddings.encoder)}
    for name, text in (
        ("metadata.json", {"media_type": "video", "info": info}),
        ("samples.json", {"samples": samples}),
        ("frames.json", {"frames": {}}),
    ):
        write_text_atomic(folder / name, strict_json(text) + "\n")


def write_label_studio(embeddings: Embeddings, folder: Path) -> None:
    """Writes `folder`/tasks.json and labeling_config.xml. The labels of a task are an annotation, which Label Studio's
    own export returns. Paths are those of its local storage with the document root /."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for row in range(len(embeddings)):
        path, names = str(embeddings.paths[row]), embeddings.names_of(row)
        data = {
            "video": LOCAL_FILES + quote(path.lstrip("/"), errors="surrogateescape"),
            "path": path,
            "split": str(embeddings.splits[row]),
        }
        choices = {"from_name": "label", "to_name": "video", "type": "choices", "value": {"choices": names}}
        tasks.append({"data": data, "annotations": [{"result": [choices]}] if names else []})
    choice = "multiple" if embeddings.multi_label else "single"
    options = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in embeddings.classes.tolist())
    config = (
        '<View>\n  <Video name="video" value="$video"/>\n'
        f'  <Choices name="label" toName="video" choice="{choice}" showInline="true">\n{options}  </Choices>\n</View>\n'
    )
    write_text_atomic(folder / "tasks.json", strict_json(tasks, indent=1) + "\n")
    write_text_atomic(folder / "labeling_config.xml", config)


def write_parquet(embeddings: Embeddings, folder: Path) -> None:
    """Writes `folder`/embeddings.parquet with path, split, group, labels (names), start_s, end_s (null if the whole
    file is meant) and vector; `classes` and `encoder` are JSON in the schema's metadata. Raises `UserError` for names
    that are not UTF-8."""
    import pyarrow
    import pyarrow.parquet

    odd = [name for name in [*embeddings.paths.tolist(), *embeddings.groups.tolist()] if not is_utf8(name)]
    if odd:
        raise UserError(f"formats=[parquet]: {odd[0]!r} is not UTF-8, which Parquet needs: rename it")
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "path": embeddings.paths.tolist(),
        "split": embeddings.splits.tolist(),
        "group": embeddings.groups.tolist(),
        "labels": pyarrow.array(map(embeddings.names_of, range(len(embeddings))), pyarrow.list_(pyarrow.string())),
        "start_s": pyarrow.array(embeddings.starts, from_pandas=True),  # NaN becomes null
        "end_s": pyarrow.array(embeddings.ends, from_pandas=True),
        "vector": pyarrow.FixedSizeListArray.from_arrays(embeddings.vectors.ravel(), embeddings.vectors.shape[1]),
    }
    about = {"classes": embeddings.classes.tolist(), "encoder": dict(embeddings.encoder)}
    table = pyarrow.table(columns, metadata={key: strict_json(value) for key, value in about.items()})
    with replacing_path(folder / "embeddings.parquet") as temporary:
        pyarrow.parquet.write_table(table, temporary)


EXPORTS: Mapping[str, Callable[[Embeddings, Path], None]] = {
    "parquet": write_parquet,
    "fiftyone": write_fiftyone,
    "label_studio": write_label_studio,
}
