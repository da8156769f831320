"""Datasets as other tools import them, with labels, splits and embeddings where they take them.

FiftyOne: a folder for `fiftyone.Dataset.from_dir(dataset_dir=..., dataset_type=fiftyone.types.FiftyOneDataset)`, in the
form without a version (plain JSON), which it reads beside its own dump of a database. Label Studio: tasks for its
import (Label Studio JSON format), and the labeling configuration that they are for.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from vidtrain.embeddings.store import Embeddings
from vidtrain.files.atomic import strict_json, write_text_atomic

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
                "start_s": float(
                    embeddings.starts[row]
                ),  # null where the file is not cut, as JSON has no NaN
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


EXPORTS: Mapping[str, Callable[[Embeddings, Path], None]] = {
    "fiftyone": write_fiftyone,
    "label_studio": write_label_studio,
}
