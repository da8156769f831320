"""Where a run starts, through the app: what is said, what is recorded, and what is refused before any data is seen."""

import json
import os
import re

import pytest
import torch
from composing import config_of
from omegaconf import DictConfig, OmegaConf

from vidtrain.app.check import check_run
from vidtrain.app.launch import find_faults
from vidtrain.build import parts as build
from vidtrain.build.parts import load_starting_point
from vidtrain.models.weights.vjepa import VJEPA_2, VJEPA_PROBE
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks

SMALL = [
    "model=vjepa2_vitl",
    "model.encoder.embed_dim=24",
    "model.encoder.depth=2",
    "model.encoder.num_heads=2",
    "model.head.num_heads=2",
    "model.head.depth=2",
]
CPU = Ranks(torch.device("cpu"))


class Console:
    def __init__(self):
        self.said = []

    def info(self, text: str) -> None:
        self.said.append(text)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def config(*overrides: str) -> DictConfig:
    return config_of("train", *SMALL, *overrides)


def faults(*overrides: str) -> list[tuple[str, str]]:
    return [(key, why) for _, key, why in find_faults("train", overrides, check_run)]


@pytest.fixture
def files(tmp_path):
    """An encoder and a probe for three classes as V-JEPA 2 publishes them, and files that are none."""
    torch.manual_seed(7)
    tensors = build.instantiate_component(config().model, num_classes=3).state_dict()
    torch.save({"target_encoder": VJEPA_2.revert(tensors), "opt": {}}, tmp_path / "encoder.pt")
    torch.save({"classifiers": [VJEPA_PROBE.revert(tensors)]}, tmp_path / "probe.pt")
    whole = (tmp_path / "encoder.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"w": Bomb()}, tmp_path / "code.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pt")
    return tmp_path


def start(cfg: DictConfig, classes: int, folder) -> tuple[torch.nn.Module, Console]:
    model, console = build.model(cfg, classes, CPU), Console()
    console.said.append(load_starting_point(cfg, model, CPU, console, folder).origin)
    return model, console


def test_an_encoder_and_a_probe_are_loaded_in_turn_and_recorded(files):
    sources = [str(files / name) for name in ("encoder.pt", "probe.pt")]
    cfg = config(f"pretrained=[{','.join(sources)}]")
    assert check_run(cfg) == []
    model, console = start(cfg, 3, files)
    assert torch.equal(model.encoder.norm.weight, torch.load(sources[0])["target_encoder"]["norm.weight"])
    assert console.said == [
        f"weights of {sources[0]}: V-JEPA 2, original; 100.0% of the tensors match\n  loaded 28",
        f"weights of {sources[1]}: V-JEPA attentive probe, original; 100.0% of the tensors match\n  loaded 27",
        f"starts from {sources[0]} and {sources[1]}",
    ]
    record = json.loads((files / "starting_point.json").read_text())
    assert [(each["format"], each["counts"]["loaded"]) for each in record["sources"]] == [
        ("V-JEPA 2, original", 28),
        ("V-JEPA attentive probe, original", 27),
    ]
    assert record["initialized"] == []


def test_what_is_not_in_the_file_is_said_to_be_random(files):
    _, console = start(config(f"pretrained={files}/encoder.pt"), 3, files)
    assert console.said[1].startswith("initialized at random: 27 tensors: head.pooler.query_tokens, ")
    assert len(json.loads((files / "starting_point.json").read_text())["initialized"]) == 27


def test_a_probe_for_other_classes_starts_from_all_but_its_last_layer(files):
    _, console = start(config(f"pretrained=[{files}/encoder.pt,{files}/probe.pt]"), 5, files)
    assert "skipped 2 of a head for other classes: head.linear.weight [3, 24] for [5, 24]" in console.said[1]
    assert console.said[2] == "initialized at random: 2 tensors: head.linear.weight, head.linear.bias"


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (
            ["model=r3d_18", "pretrained={}/encoder.pt"],
            "pretrained",
            "V-JEPA 2, original, which does not fit",
        ),
        ([*SMALL, "pretrained={}/half.pt"], "pretrained", "half.pt is truncated or not a PyTorch file"),
        ([*SMALL, "pretrained={}/code.pt"], "pretrained", "code.pt is refused.*can run code"),
        ([*SMALL, "pretrained={}/other.pt"], "pretrained", "other.pt has an unknown format"),
        ([*SMALL, "pretrained={}/absent.pt"], "pretrained", "absent.pt does not exist"),
        ([*SMALL, "init_from={}/absent.pt"], "init_from", "absent.pt is not a file"),
        (
            [*SMALL, "pretrained={}/encoder.pt", "model.encoder.positions=sincos"],
            "pretrained",
            "positions=rope",
        ),
        (
            [*SMALL, "pretrained={}/encoder.pt", "model.encoder.depth=3"],
            "pretrained",
            "fits the model's encoder by",
        ),
        (
            [*SMALL, "pretrained={}/encoder.pt", "clip.frames=5"],
            "model",
            "clip.frames=5 is not.*tubelet_size=2",
        ),
        ([*SMALL, "pretrained={}/encoder.pt", "clip.size=40"], "model", "clip.size=40 is not.*patch_size=16"),
        (["model=r3d_18", "pretrained=R3D_18_Weights.NONE_V1"], "pretrained", "did you mean R3D_18_Weights"),
        (
            ["model=timm_frames", "model.encoder.backbone=resnet81"],
            "model",
            "no such image model; did you mean resnet18",
        ),
        (
            ["model=timm_frames", "pretrained=timm:resnet18.a1_in2k"],
            "pretrained",
            "did you mean resnet18.a1_in1k",
        ),
    ],
)
def test_what_does_not_fit_is_found_before_any_data(files, monkeypatch, overrides, key, message):
    monkeypatch.chdir(files)
    found = faults(*(each.format(files) for each in overrides))
    assert [each for each, _ in found] == [key]
    assert re.search(message, found[0][1], re.DOTALL)
    assert not (files / "exploded").exists()


def test_a_name_that_is_not_there_is_found_beside_a_faulty_model(files):
    found = faults("model=timm_frames", "model.encoder.backbone=resnet81", f"pretrained={files}/absent.pt")
    assert [key for key, _ in found] == ["model", "pretrained"]


def test_options_that_an_installed_package_brings_are_not_ours():
    """Classy Vision puts a folder of configurations on Hydra's search path."""
    assert faults("model=resnet_50") == [("model", "group model has no option resnet_50; did you mean resnext3d_101?")]


def test_a_checkpoint_of_ours_comes_before_published_weights(files):
    cfg = config()
    torch.manual_seed(3)
    model = build.instantiate_component(cfg.model, num_classes=3)
    stored = OmegaConf.to_container(cfg)
    checkpoint.save({"model": model.state_dict(), "config": stored}, files / "best.pt")
    cfg = config(f"init_from={files}/best.pt", f"pretrained={files}/encoder.pt")
    assert check_run(cfg) == []
    found, console = start(cfg, 3, files)
    assert torch.equal(found.encoder.norm.weight, model.encoder.norm.weight)
    assert console.said[0] == "init_from is set, so pretrained is not used"
    assert console.said[-1] == f"starts from {files}/best.pt"


def test_a_run_that_is_resumed_needs_no_starting_point(files):
    assert [key for key, _ in check_run(config("pretrained=gone.pt"))] == ["pretrained"]
    (files / "run/checkpoints").mkdir(parents=True)
    (files / "run/checkpoints/last.pt").touch()
    assert check_run(config("pretrained=gone.pt", f"run_dir={files}/run")) == []


def test_interpolated_positions_name_the_setting_that_avoids_them():
    """VideoMAE's table of 16 frames at 224: a shorter clip takes its beginning, a longer or larger one interpolates."""
    cfg = config_of("train", "model=videomae_small", "model.encoder.depth=1")
    small = build.model_without_memory(cfg)
    assert build.interpolated_positions(small, 16, (224, 224)) is None
    assert build.interpolated_positions(small, 8, (224, 224)) is None
    assert build.interpolated_positions(small, 16, (384, 384)).endswith(
        "set model.encoder.num_frames=16 model.encoder.image_size=384"
    )
    assert "16 frames of 224 pixels are interpolated to 32 of 224" in build.interpolated_positions(
        small, 32, (224, 224)
    )
    assert build.interpolated_positions(build.model_without_memory(config()), 64, (384, 384)) is None
    learned = build.model_without_memory(
        config_of("train", "model=vit3d_micro", "model.encoder.positions=learned", "clip.frames=16", "clip.size=64")
    )
    assert build.interpolated_positions(learned, 8, (64, 64)) is None  # its beginning
    for frames, size in ((16, 96), (32, 64)):
        assert build.interpolated_positions(learned, frames, (size, size)).endswith(
            f"set model.encoder.num_frames={frames} model.encoder.image_size={size}"
        )
