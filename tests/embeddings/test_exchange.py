"""Files for other tools, against their packages where they are installed, else against their documented form."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from made_embeddings import made, several

from vidtrain.embeddings.store import write_fiftyone, write_label_studio, write_parquet
from vidtrain.errors import UserError


def read(path):
    return json.loads(path.read_text())


def some():
    embeddings = made(12)
    labels = np.where(np.arange(12) == 5, -1, embeddings.labels)
    starts = np.where(np.arange(12) == 2, 1.5, np.nan)
    return replace(embeddings, labels=labels, starts=starts, classes=np.array(['a "b"', "<c>", "d & e"]))


def test_samples_are_in_the_form_of_fiftyone(tmp_path):
    embeddings = some()
    write_fiftyone(embeddings, tmp_path)
    metadata, samples = read(tmp_path / "metadata.json"), read(tmp_path / "samples.json")["samples"]
    assert metadata["media_type"] == "video" and "version" not in metadata
    assert samples[1]["filepath"] == "/videos/0001.mp4" and samples[1]["tags"] == ["train"]
    assert samples[1]["ground_truth"] == {"_cls": "Classification", "label": "<c>"}
    assert samples[5]["ground_truth"] is None and (samples[2]["start_s"], samples[2]["end_s"]) == (1.5, None)
    assert np.abs(np.array([sample["embedding"] for sample in samples]) - embeddings.vectors).max() < 1e-6
    assert (tmp_path / samples[0]["frames"]).is_file()
    write_fiftyone(several(made(12)), tmp_path)
    truth = read(tmp_path / "samples.json")["samples"][4]["ground_truth"]
    assert [label["label"] for label in truth["classifications"]] == ["class 0", "class 1"]


@pytest.mark.slow
@pytest.mark.parametrize("embeddings", [some(), several(made(12))], ids=["one_label", "several_labels"])
def test_fiftyone_has_everything_again(tmp_path, embeddings):
    """By its importer, which needs no database."""
    importers = pytest.importorskip("fiftyone.utils.data.importers")
    write_fiftyone(embeddings, tmp_path)
    importer = importers.LegacyFiftyOneDatasetImporter(dataset_dir=str(tmp_path))
    importer.setup()
    samples = list(importer)
    assert importer.get_dataset_info()["classes"] == embeddings.classes.tolist() and len(samples) == 12
    for row, sample in enumerate(samples):
        truth = sample.ground_truth
        labels = [] if truth is None else truth.classifications if embeddings.multi_label else [truth]
        assert (sample.filepath, sample.media_type) == (embeddings.paths[row], "video")
        assert [label.label for label in labels] == embeddings.names_of(row)
        assert np.abs(np.array(sample.embedding) - embeddings.vectors[row]).max() < 1e-6


def test_tasks_are_in_the_form_of_label_studio(tmp_path):
    write_label_studio(some(), tmp_path)
    tasks = read(tmp_path / "tasks.json")
    assert tasks[0]["data"]["video"] == "/data/local-files/?d=videos/0000.mp4"
    (result,) = tasks[1]["annotations"][0]["result"]
    assert result == {
        "from_name": "label",
        "to_name": "video",
        "type": "choices",
        "value": {"choices": ["<c>"]},
    }
    assert tasks[5]["annotations"] == []
    config = ElementTree.parse(tmp_path / "labeling_config.xml").getroot()
    assert [choice.get("value") for choice in config.iter("Choice")] == ['a "b"', "<c>", "d & e"]
    assert config.find("Choices").attrib["choice"] == "single"


def test_label_studio_takes_the_tasks(tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    for embeddings in (some(), several(made(12))):
        write_label_studio(embeddings, tmp_path)
        config = interface.LabelInterface((tmp_path / "labeling_config.xml").read_text())
        assert config.is_valid
        for task in read(tmp_path / "tasks.json"):
            assert config.validate_task({"data": task["data"]})
            for annotation in task["annotations"]:
                assert config.validate_annotation(annotation)


def test_parquet_has_everything_again(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    embeddings = some()
    write_parquet(embeddings, tmp_path)
    table = parquet.read_table(tmp_path / "embeddings.parquet")
    assert table.column_names == ["path", "split", "group", "labels", "start_s", "end_s", "vector"]
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == embeddings.paths.tolist()
    assert rows[1]["labels"] == ["<c>"] and rows[5]["labels"] == []
    assert (rows[2]["start_s"], rows[2]["end_s"], rows[3]["start_s"]) == (1.5, None, None)
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), embeddings.vectors)
    about = {key.decode(): json.loads(value) for key, value in table.schema.metadata.items()}
    assert about["encoder"] == embeddings.encoder and about["classes"] == ['a "b"', "<c>", "d & e"]
    write_parquet(several(made(12)), tmp_path)
    assert parquet.read_table(tmp_path)["labels"][4].as_py() == ["class 0", "class 1"]
    with pytest.raises(UserError, match="not UTF-8"):
        write_parquet(replace(embeddings, paths=np.array(["\udce9"] * 12)), tmp_path)
