"""The model card: what it says of a run, and what it says that is not known."""

import json

import pytest

from vidtrain.errors import UserError
from vidtrain.runs.export import write_model_card

CONFIG = {
    "name": "gestures",
    "seed": 3,
    "clip": {"frames": 16, "size": 112, "train_clips": 1, "frame_order": "forward", "mean": [0.5, 0.5, 0.5],
             "std": [0.2, 0.2, 0.2]},
    "dataset": {"name": "gestures", "source": {"_target_": "vidtrain.data.sources.listings.Listing"}},
    "model": {"encoder": {"_target_": "vidtrain.models.vit3d.ViT3D"},
              "head": {"_target_": "vidtrain.models.heads.AttentiveClassifier"}},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.001, "betas": [0.9, 0.999]},
    "stage": {"full": {"duration": "100%", "encoder_blocks": None}},
    "trainer": {"epochs": 5, "ema": None},
}  # fmt: skip
SUMMARY = {"monitor": "top1", "best": 0.9, "best_step": 40, "best_weights": "raw", "steps": 50, "minutes": 2.5,
           "split": "test", "split_also_selected": False}  # fmt: skip
EVALUATED = {
    "metrics": {"loss": 0.5, "top1": 0.875, "f1_macro": 0.86, "clip_top1": 0.75, "clip_loss": 0.6},
    "coverage": "40/41",
    "protocol": "16x4 frames at 112x112, 2 clips x 1 crop, mean_logits",
    "missing": [{"path": "c|d.mp4", "cause": "the file is empty"}],
}
EXPORTED = {
    "model": {"parameters": 1234567},
    "input": {
        "name": "clips",
        "dtype": "uint8",
        "shape": ["videos", "views", 3, 16, 112, 112],
        "meaning": "RGB",
    },
    "outputs": {"probabilities": ["videos", 2]},
    "probabilities": "softmax",
    "files": {
        "onnx": {"file": "model.onnx", "opset": 18, "bytes": 2500000, "difference": {"relative": 3.2e-7}},
        "safetensors": {"file": "model.safetensors", "bytes": 2400000},
    },
}


@pytest.fixture
def run(tmp_path):
    """A run folder with what the card reads."""
    folder = tmp_path / "run"
    files = {
        "summary.json": SUMMARY,
        "eval/test/metrics.json": EVALUATED,
        "dataset.json": {"classes": ["wave", "point"], "videos": {"train": 1200, "val": 100, "test": 41}},
        "run.json": {"id": "abc123"},
        "git.json": {"commit": "0123abc", "dirty": True, "problem": None},
        "environment.json": {
            "command": "python -m vidtrain.train a|b", "packages": {"vidtrain": "0.1.0", "timm": "1.0", "rich": "13"},
            "torch": "2.11.0", "devices": [], "cpus_usable": 2, "time_utc": "2026-01-02T03:04:05+00:00",
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "eval/test/per_class.csv").write_text(
        "class,support,precision,recall,f1\nwave,35,0.97,0.98765,0.95\npoint,5,,0.6,0.7\n"
    )
    (folder / "plots").mkdir()
    (folder / "plots/curves.png").write_bytes(b"curves")
    (folder / "plots/confusion_test.png").write_bytes(b"confusion")
    (folder / "plots/confusion_test_names.txt").write_text("#1\tname")  # of what could not be drawn
    return folder


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_card_of_a_run(run, tmp_path):
    path = write_model_card(run, tmp_path / "out", CONFIG, EXPORTED)
    assert path == tmp_path / "out/MODEL_CARD.md"
    assert (tmp_path / "out/confusion_test_names.txt").read_text() == "#1\tname"
    assert (tmp_path / "out/curves.png").read_bytes() == b"curves"  # the card can be moved with its folder
    text = path.read_text()
    lines = text.splitlines()
    assert lines[0] == "# gestures: ViT3D + AttentiveClassifier"
    assert lines[2] == (
        "Tells 2 classes of videos apart. **top-1 accuracy 0.8750** on test (40/41 videos; "
        "16x4 frames at 112x112, 2 clips x 1 crop, mean_logits)."
    )
    assert [line for line in lines if line.startswith("## ")] == [
        "## Model", "## Files", "## Data", "## Metrics", "## Training", "## Limits", "## Made with"
    ]  # fmt: skip
    for line in (
        "| parameters | 1,234,567 |",
        "| weights | as trained; step 40 of 50, best top1 on val |",
        "| started from | random weights |",
        "| input | clips of 16 RGB frames, 112x112 pixels |",
        "| `model.onnx` | onnx, opset 18 | 2.5 MB | 3.2e-07 |",
        "| `model.safetensors` | safetensors | 2.4 MB | the same tensors |",
        "| videos in train | 1,200 |",
        "| classes (2) | wave, point |",
        "- `c|d.mp4`: the file is empty",
        "| top-1 accuracy | 0.7500 | 0.8750 |",
        "| F1, macro |  | 0.8600 |",
        "| point | 5 |  | 0.6 | 0.7 |",
        "| wave | 35 | 0.97 | 0.9877 | 0.95 |",
        "![Confusion matrix on test](confusion_test.png)",
        "| `optimizer` | `AdamW(lr=0.001, betas=[0.9, 0.999])` |",
        "| `stage` | `(full=(duration=100%))` |",
        "| `trainer.epochs` | `5` |",
        "- Videos that could not be read and are not counted: 1.",
        "- Classes with fewer than 10 videos to measure on (1 of 2): point.",
        "| run | run (abc123) |",
        "| code | 0123abc, with changes (git.diff of the run) |",
        "| command | `python -m vidtrain.train a\\|b` |",
        "| versions | torch 2.11.0, vidtrain 0.1.0, timm 1.0 |",
        "| device | CPU, cores: 2 |",
    ):
        assert line in lines, line
    assert lines.index("| point | 5 |  | 0.6 | 0.7 |") < lines.index("| wave | 35 | 0.97 | 0.9877 | 0.95 |")
    assert "trainer.ema" not in text


def test_every_row_of_a_table_has_as_many_cells(run, tmp_path):
    lines = write_model_card(run, tmp_path / "out", CONFIG, EXPORTED).read_text().splitlines()
    bars = 0
    for line in lines:
        cells = line.replace("\\|", "").count("|") if line.startswith("|") else 0
        assert bars == 0 or cells in (0, bars), line
        bars = cells


def test_what_weakens_the_numbers_is_said(run, tmp_path):
    rewrite(run / "summary.json", split_also_selected=True, best_weights="ema")
    start = {
        "sources": [{"source": "timm:vit", "format": "timm, ViT", "match": 0.98}],
        "initialized": ["a", "b"],
    }
    (run / "starting_point.json").write_text(json.dumps(start))
    (run / "dataset.json").unlink()
    probe = CONFIG | {"clip": CONFIG["clip"] | {"frame_order": "single_frame"}}
    text = write_model_card(run, tmp_path / "out", probe, None).read_text()
    assert "on test, which also selected the checkpoint (40/41" in text
    assert "also selected the checkpoint, so the numbers are too high" in text
    assert "| started from | timm:vit (timm, ViT, 98% of tensors match); 2 tensors at random |" in text
    assert "moving average; step 40" in text
    assert "Frames were shown single_frame: the model is an ablation" in text
    assert "## Files" not in text and "videos in train" not in text


def test_videos_of_several_labels_have_no_confusion_matrix(run, tmp_path):
    (run / "plots/confusion_test.png").unlink()
    rewrite(run / "eval/test/metrics.json", metrics={"map": 0.5, "loss": 0.4}, missing=[])
    (run / "eval/test/per_class.csv").write_text("class,support,average_precision,f1\nwave,20,0.5,0.4\n")
    text = write_model_card(run, tmp_path / "out", CONFIG, None).read_text()
    assert "**mean average precision, macro 0.5000** on test" in text
    assert "| class | support | average_precision | f1 |" in text
    assert "Confusion" not in text


def test_of_many_classes_the_weakest_and_the_strongest_are_shown(run, tmp_path):
    rows = "".join(f"c{number:03d},20,0.5,0.5,{number / 100}\n" for number in range(100))
    (run / "eval/test/per_class.csv").write_text("class,support,precision,recall,f1\n" + rows)
    text = write_model_card(run, tmp_path / "out", CONFIG, None).read_text()
    shown = [line[2:6] for line in text.splitlines() if line.startswith("| c0")]
    assert shown == [f"c{number:03d}" for number in (*range(15), *range(85, 100))]
    assert "| classes (100) | c000, c001," in text and "c029 and 70 more |" in text


def test_a_file_that_the_run_should_have_left_is_named(run, tmp_path):
    (run / "git.json").unlink()
    with pytest.raises(UserError, match="git.json cannot be read"):
        write_model_card(run, tmp_path / "out", CONFIG, None)
