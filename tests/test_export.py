"""The exporting program: from a run, a checkpoint and published weights; what it leaves, and what uses that."""

import csv
import json
import os
import shutil

import pytest
import torch
from composing import config_of
from omegaconf import OmegaConf
from pictures import pictures_drawn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import small
from torchvision.models import get_model

from vidtrain.app.check import check_run
from vidtrain.app.launch import find_faults
from vidtrain.build.checkpoint_loader import open_trained
from vidtrain.config.references import to_settings
from vidtrain.config.schemas import ExportConfig
from vidtrain.config.targets import CONF
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.export import check, export
from vidtrain.models.weights import CARD_KEY
from vidtrain.models.weights.loading import published_classes
from vidtrain.models.weights.torchvision import enum_weights
from vidtrain.train import train
from vidtrain.training import checkpoint

pytestmark = pytest.mark.usefixtures("without_pictures")
SMALL = small(
    "clip.eval_clips=2",
    "logger=none",
    "trainer.epochs=1",
    "trainer.batch_size=4",
    test=2,
)


def faults(*overrides):
    return [": ".join(fault) for fault in find_faults("export", overrides, check)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that exported its best checkpoint at its end."""
    folder, data = tmp_path_factory.mktemp("runs") / "small", tmp_path_factory.mktemp("data")
    exporting = ["export.formats=[onnx,safetensors]", "export.card=true"]
    with pictures_drawn():
        train(config_of("train", *SMALL, *exporting, f"data_root={data}", f"run_dir={folder}"))
    return folder


def predictions(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return [(row["path"], row["prediction"], float(row["p1"])) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_run_exports_its_best_checkpoint_at_its_end(run):
    files = {path.name for path in (run / "export").iterdir()}
    assert files == {"model.onnx", "model.safetensors", "card.json", "MODEL_CARD.md", "curves.png",
                     "confusion_test.png"}  # fmt: skip
    best = checkpoint.load(run / "checkpoints/best.pt")
    tensors = load_file(run / "export/model.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in best["model"].items())
    assert "| videos in train | 20 |" in (run / "export/MODEL_CARD.md").read_text()


def test_the_card_says_all_that_is_needed_to_use_the_files(run):
    card = json.loads((run / "export/card.json").read_text())
    assert card["classes"][:3] == ["appear", "grow", "move_down"] and len(card["classes"]) == 10
    assert card["input"] == {
        "name": "clips",
        "dtype": "uint8",
        "shape": ["videos", "views", 3, 8, 16, 16],
        "meaning": "RGB, 0 to 255; the graph normalizes",
    }
    assert card["outputs"] == {"clip_logits": ["videos", "views", 10], "probabilities": ["videos", 10]}
    assert card["preprocessing"] == {
        "frames": 8, "frame_step": 3, "fps": None, "duration": None, "sampling": "dense", "overlap": True,
        "short_video_policy": "repeat_last", "frame_order": "forward", "eval_clips": 2,
        "short_side": 18, "whole_frame": False, "squashed": False,
        "crops": 1, "height": 16, "width": 16, "interpolation": "bicubic",
        "resize": "antialiased", "sample_aspect": "ignore", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    assert card["protocol"] == "8x3 frames at 16x16, 2 clips x 1 crop, mean_logits"
    found = json.loads((run / "eval/test/metrics.json").read_text())
    assert card["metrics"] == {"split": "test", "coverage": "20/20", **found["metrics"]}
    assert card["files"]["onnx"]["opset"] == 18
    assert card["files"]["onnx"]["difference"]["relative"] < 2e-6  # measured 3e-7
    assert card["probabilities"] == "softmax"
    assert card["config"]["model"]["encoder"]["embed_dim"] == 24
    # the same lies in each file, which may be copied alone
    inside = {key: value for key, value in card.items() if key != "files"}
    assert open_trained(run / "export/model.onnx", trust_targets=False).card == inside
    assert open_trained(run / "export/model.safetensors", trust_targets=False).card == inside


@pytest.mark.slow
def test_exported_files_give_the_answers_of_the_checkpoint_on_the_test_split(run, tmp_path):
    found = {}
    for name in ("checkpoints/best.pt", "export/model.onnx", "export/model.safetensors"):
        alone = tmp_path / name  # away from the run
        alone.parent.mkdir(exist_ok=True)
        shutil.copyfile(run / name, alone)
        out = tmp_path / alone.name / "eval"
        top1 = evaluate(config_of("evaluate", f"checkpoint={alone}", f"out={out}", "num_workers=0"))
        found[alone.suffix] = top1, predictions(out)
    assert found[".safetensors"] == found[".pt"]
    assert found[".onnx"][0] == found[".pt"][0]
    for (path, answer, chance), (own_path, own_answer, own_chance) in zip(
        found[".onnx"][1], found[".pt"][1], strict=True
    ):
        assert (path, answer) == (own_path, own_answer)
        assert chance == pytest.approx(own_chance, abs=2e-6)


def test_another_fusion_is_the_callers_unless_clips_are_seen_jointly(run, tmp_path):
    graph = f"checkpoint={run}/export/model.onnx"
    evaluate(config_of("evaluate", graph, f"out={tmp_path}", "num_workers=0", "fusion=mean_probs"))
    assert "mean_probs" in json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    with pytest.raises(UserError, match="fusion=mean_logits, .*joint"):
        evaluate(config_of("evaluate", graph, f"out={tmp_path}", "num_workers=0", "fusion=joint"))


@pytest.mark.slow
def test_the_program_exports_a_runs_best_checkpoint_and_makes_its_card(run, tmp_path):
    export(config_of("export", f"checkpoint={run}", "formats=[torch_export]", f"out={tmp_path}"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.pt2", "card.json", "MODEL_CARD.md", "curves.png", "confusion_test.png"
    }  # fmt: skip
    extra = {"card.json": ""}
    exported = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["card.json"])["classes"][0] == "appear"
    clips = torch.zeros(3, 1, 3, 8, 16, 16, dtype=torch.uint8)
    logits, probabilities = exported.module()(clips)
    assert tuple(logits.shape) == (3, 1, 10) and probabilities.sum(dim=-1).tolist() == pytest.approx([1, 1, 1])


def test_metrics_are_stated_of_the_checkpoint_that_they_were_measured_of(run, tmp_path):
    last = f"checkpoint={run}/checkpoints/last.pt"
    export(config_of("export", last, "formats=[safetensors]", f"out={tmp_path}", "card=false", "precision=fp16"))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["metrics"] is None
    assert card["weights"] == {"checkpoint": f"{run}/checkpoints/last.pt"}
    assert load_file(tmp_path / "model.safetensors")["head.linear.weight"].dtype == torch.float16


# --- published weights ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_published_weights_are_exported_with_the_clips_and_classes_of_their_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    name = "MC3_18_Weights.KINETICS400_V1"
    file = tmp_path / "hub/hub/checkpoints" / enum_weights(name).url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    theirs = get_model("mc3_18", weights=None)
    torch.save(theirs.state_dict(), file)
    chosen = ["model=mc3_18", f"pretrained={name}", "formats=[safetensors]", f"out={tmp_path}"]
    assert faults(*chosen) == []
    export(config_of("export", *chosen))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["classes"][:2] == ["abseiling", "air drumming"] and len(card["classes"]) == 400
    assert card["protocol"] == "16 frames at 15 fps at 112x112, 1 clip x 1 crop, mean_logits"
    assert card["preprocessing"]["short_side"] == 128
    assert card["preprocessing"]["mean"] == [0.43216, 0.394666, 0.37645]
    assert card["preprocessing"]["interpolation"] == "bilinear"
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["head.linear.weight"], theirs.fc.weight)


def test_classes_stand_in_a_config_beside_the_weights(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert published_classes("folder", tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "run", "0": "jump"}}))
    assert published_classes("folder", tmp_path) == ("jump", "run")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "run", "2": "jump"}}))
    with pytest.raises(UserError, match="from 0; give classes="):
        published_classes("folder", tmp_path)


CLIPS = [
    "clip.frames=8",
    "clip.frame_step=3",
    "clip.size=16",
    "clip.mean=[0.5,0.5,0.5]",
    "clip.std=[0.5,0.5,0.5]",
]
TINY = ["model=vit3d_micro", "model.encoder.embed_dim=24", "model.encoder.depth=1"]


@pytest.mark.slow
def test_weights_without_a_word_on_clips_or_classes_need_to_be_told(run, tmp_path, capsys):
    own = [*TINY, f"pretrained={run}/checkpoints/best.pt", "formats=[safetensors]", f"out={tmp_path}"]
    with pytest.raises(UserError, match="clip.frames, .*clip.std, a stride"):
        export(config_of("export", *own))
    with pytest.raises(UserError, match="its 10 classes; give classes=FILE"):
        export(config_of("export", *own, *CLIPS))
    with pytest.raises(UserError, match="classes: 2 names for the 10 classes"):
        export(config_of("export", *own, *CLIPS, "classes=[a,b]"))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {number}" for number in range(10)) + "\n")
    export(config_of("export", *own, *CLIPS, f"classes={names}"))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["classes"][9] == "class 9"
    assert card["protocol"] == "8x3 frames at 16x16, 1 clip x 1 crop, mean_logits"
    assert card["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    # there was no training, so evaluating asks for what evaluating needs, and for that alone
    with pytest.raises(SystemExit):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/model.safetensors"))
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  the checkpoint's configuration, as changed: dataset: must be chosen: dataset=OPTION"
    ]
    with pytest.raises(UserError, match="other classes .*: 10 and 10"):
        data = ["dataset=motion", f"data_root={tmp_path}", "dataset.source.root=${data_root}/motion"]
        small = [each for each in SMALL if each.startswith("+dataset")]
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/model.safetensors", *data, *small, "num_workers=0"))


def test_weights_without_a_head_answer_nothing(run, tmp_path):
    payload = checkpoint.load(run / "checkpoints/best.pt")
    payload["model"] = {name: each for name, each in payload["model"].items() if name.startswith("encoder.")}
    checkpoint.save(payload, tmp_path / "encoder.pt")
    with pytest.raises(UserError, match="have an encoder but no classifier"):
        export(config_of("export", *TINY, *CLIPS, f"pretrained={tmp_path}/encoder.pt", f"out={tmp_path}"))


# --- faults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "give either checkpoint=RUN or pretrained=WEIGHTS"),
        (["checkpoint=a", "pretrained=b"], "give either checkpoint=RUN or pretrained=WEIGHTS"),
        (["checkpoint=/no/run"], "checkpoint: /no/run: there is no such file or folder"),
        (["checkpoint={conf}"], "is a folder, but no run's folder; name a run's folder, or a file"),
        (["pretrained=a"], "model: must be chosen for published weights: model=OPTION"),
        (["pretrained=a", "model=r3d_18", "card=true"], "published weights have none"),
        (["checkpoint={run}", "model=r3d_18"], "model: is only for pretrained=WEIGHTS"),
        (["checkpoint={run}", "clip.fps=5"], "clip.fps: is only for pretrained=WEIGHTS"),
        (["checkpoint={run}", "formats=[onxx]"], "formats: onxx is unknown; did you mean onnx?"),
        (["checkpoint={run}", "formats=[]", "card=false"], "formats: nothing to write"),
        (["checkpoint={run}", "opset=17"], "opset: opset=17 cannot be written"),
        (["checkpoint={run}", "precision=fp8"], "precision: fp8 is unknown; known: fp32, bf16, fp16"),
        (["checkpoint={run}", "input=float"], "input: float is unknown; did you mean float32?"),
        (["checkpoint={run}", "max_difference=0"], "max_difference: 0.0 must be above 0"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(overrides, expected, run):
    found = faults(*(each.format(run=run, conf=CONF) for each in overrides))
    assert len(found) == 1, found
    assert expected in found[0]


def test_a_training_run_refuses_what_it_could_not_export_before_it_starts(monkeypatch):
    found = check_run(config_of("train", "export.formats=[onnx]", "export.opset=9"))
    assert [key for key, _ in found] == ["export.opset"]
    found = check_run(config_of("train", "export.formats=[onnx]", "augmentation=whole_frame"))
    assert [key for key, _ in found] == ["export"] and "formats=[safetensors]" in found[0][1]
    assert check_run(config_of("train", "export.formats=[safetensors]", "augmentation=whole_frame")) == []


@pytest.mark.slow
def test_a_graph_that_differs_too_much_fails_and_is_not_left(run, tmp_path):
    strict = [f"checkpoint={run}", "formats=[onnx]", "card=false", "max_difference=1e-12", f"out={tmp_path}"]
    with pytest.raises(UserError, match="differs .*max_difference=1e-12"):
        export(config_of("export", *strict))
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_name_is_no_utf8_is_refused_in_words(run, tmp_path):
    """safetensors and ONNX take no other paths, and say so with tracebacks."""
    out = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match="exported into .* name is not UTF-8"):
        export(config_of("export", f"checkpoint={run}", "formats=[safetensors]", f"out='{out}'"))
    assert not out.exists() or not list(out.iterdir())


def test_checkpoints_and_files_that_lack_what_is_needed_say_so(run, tmp_path):
    payload = checkpoint.load(run / "checkpoints/best.pt")
    del payload["classes"], payload["config"]
    checkpoint.save(payload, tmp_path / "bare.pt")
    with pytest.raises(UserError, match="bare.pt lacks classes, config"):
        export(config_of("export", f"checkpoint={tmp_path}/bare.pt"))
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="bare.safetensors cannot be used"):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/bare.safetensors"))
    with safe_open(run / "export/model.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()[CARD_KEY])
    for damaged in ("{", "[]", "{}"):
        save_file({"a": torch.zeros(1)}, tmp_path / "damaged.safetensors", {CARD_KEY: damaged})
        with pytest.raises(UserError, match=r"damaged.safetensors is damaged \("):
            evaluate(config_of("evaluate", f"checkpoint={tmp_path}/damaged.safetensors"))
    (tmp_path / "program.pt2").touch()
    with pytest.raises(UserError, match="program.pt2 is .*name the .onnx"):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/program.pt2"))
    save_file({"a": torch.zeros(1)}, tmp_path / "later.safetensors",
              {CARD_KEY: json.dumps(card | {"format": "vidtrain-export/9"})})  # fmt: skip
    with pytest.raises(UserError, match="is of format vidtrain-export/9"):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/later.safetensors"))
    card["config"]["dataset"]["source"] = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    save_file({"a": torch.zeros(1)}, tmp_path / "evil.safetensors", {CARD_KEY: json.dumps(card)})
    with pytest.raises(UserError, match=r"os.mkdir(.|\n)*trust_targets=true"):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/evil.safetensors"))


def test_what_was_exported_is_not_exported_again(run):
    with pytest.raises(UserError, match="is already exported; name the run"):
        export(config_of("export", f"checkpoint={run}/export/model.onnx"))


def test_a_model_card_needs_a_finished_run(run, tmp_path):
    shutil.copyfile(run / "checkpoints/best.pt", tmp_path / "alone.pt")
    with pytest.raises(UserError, match="finished run, and .*alone.pt is in none"):
        export(config_of("export", f"checkpoint={tmp_path}/alone.pt", "formats=[]", "card=true", f"out={tmp_path}"))


@pytest.mark.slow
def test_settings_of_the_program_are_those_of_a_run(run):
    cfg = config_of("export", f"checkpoint={run}", "formats=[onnx]", "opset=20", "card=true")
    settings = to_settings(cfg, ExportConfig)
    assert (settings.formats, settings.opset, settings.card) == (["onnx"], 20, True)
    assert OmegaConf.to_object(config_of("train").export).formats is None
