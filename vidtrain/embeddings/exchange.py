"""Datasets as other tools import them, with labels, splits and embeddings where they take them.

Parquet: a row for each video, as pandas, polars and DuckDB read it. FiftyOne: a folder for
`fiftyone.Dataset.from_dir(dataset_dir=..., dataset_type=fiftyone.types.FiftyOneDataset)`, in the form without a version
(plain JSON). Label Studio: tasks for its import (Label Studio JSON format), and their labeling configuration.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from vidtrain.embeddings.store import Embeddings
from vidtrain.errors import UserError
from vidtrain.files.atomic import replacing_path, strict_json, write_text_atomic
from vidtrain.files.escaping import is_utf8

EMBEDDING = "embedding"  # the field of FiftyOne's samples
LOCAL_FILES = "/data/local-files/?d="  # how Label Studio's local storage names a file below its document root


def write_fiftyone(embeddings: Embeddings, folder: Path) -> None:
    """`folder`/metadata.json, samples.json, and frames.json, which is empty; videos stay where they are.

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
                "start_s": float(embeddings.starts[row]),  # null where the file is not cut, as JSON has no NaN
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
    """`folder`/tasks.json and labeling_config.xml. Labels stand in a task as an annotation, which its own export has
    again; paths as its local storage serves them with the document root /."""
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
    """`folder`/embeddings.parquet with path, split, group, labels (names), start_s, end_s (null where the file is not
    cut) and vector; `classes` and `encoder` are JSON in the schema's metadata. Raises `UserError` for names that are
    not UTF-8."""
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
