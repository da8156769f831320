"""A published model brings its clips, and what the user or a recipe says counts before them."""

import json
import re

import pytest
import torch
from composing import config_of
from omegaconf import OmegaConf
from torchvision.models import get_model_weights

from vidtrain.app.check import check_run
from vidtrain.app.launch import find_faults
from vidtrain.config.references import describe_published, published_clips, settled, unseen_clips
from vidtrain.runs.folder import check_unchanged, keep_published, record
from vidtrain.training.distributed import Ranks

DEFAULT = {"frames": 8, "frame_step": 3, "fps": None, "size": 32, "interpolation": "bicubic"}


def clip(*overrides: str) -> dict:
    return settled(config_of("train", *overrides))["clip"]


@pytest.mark.parametrize(
    ("model", "clips", "fusion"),
    [
        ("vit3d_micro", DEFAULT, "mean_logits"),
        ("vit3d_large", DEFAULT, "mean_logits"),
        ("vjepa1_vitl", {"frames": 16, "frame_step": 4, "size": 224}, "joint"),
        ("vjepa2_vitl", {"frames": 16, "frame_step": 4, "size": 256, "interpolation": "bilinear"}, "joint"),
        ("vjepa2_1_vitl", {"frames": 64, "frame_step": None, "fps": 4, "size": 384}, "joint"),
        ("videomae_huge", {"frames": 16, "frame_step": 4, "size": 224}, "mean_probs"),
        (
            "mc3_18",
            {"frames": 16, "frame_step": None, "fps": 15, "mean": [0.43216, 0.394666, 0.37645]},
            "mean_logits",
        ),
        (
            "slowfast_r50",
            {"frames": 32, "fps": 15, "frame_step": None, "std": [0.225, 0.225, 0.225]},
            "mean_probs",
        ),
        ("slow_r50", {"frames": 8, "fps": 3.75, "frame_step": None}, "mean_probs"),
        (
            "mvit_v1_b",
            {"frames": 16, "fps": 7.5, "frame_step": None, "size": 224, "mean": [0.45] * 3},
            "mean_probs",
        ),
        ("timm_frames", DEFAULT | {"size": 224}, "mean_logits"),
        ("efficientnet_lite0", DEFAULT | {"size": 224, "mean": [0.498039] * 3}, "mean_logits"),
    ],
)
def test_a_model_alone_has_the_clips_that_it_was_published_with(model, clips, fusion):
    cfg = config_of("train", f"model={model}")
    assert {key: settled(cfg)["clip"][key] for key in clips} == clips
    assert cfg.model.fusion == fusion


def test_a_model_with_its_own_clips_has_no_fault():
    assert check_run(config_of("train", "model=r3d_18")) == []


def test_what_the_user_says_counts():
    said = clip("model=vjepa2_vitl", "clip.frames=8", "clip.mean=[0.5,0.5,0.5]")
    assert (said["frames"], said["mean"], said["size"]) == (8, [0.5, 0.5, 0.5], 256)
    assert config_of("train", "model=vjepa2_vitl", "model.fusion=mean_logits").model.fusion == "mean_logits"


@pytest.mark.parametrize(
    ("model", "stride"), [("vit3d_micro", "fps"), ("r3d_18", "frame_step"), ("vjepa2_vitl", "duration")]
)
def test_a_stride_that_is_set_takes_the_place_of_the_published_one(model, stride):
    said = clip(f"model={model}", f"clip.{stride}=2")
    assert [key for key in ("frame_step", "fps", "duration") if said[key] is not None] == [stride]
    said = clip(f"model={model}", "clip.sampling=uniform")
    assert said["frame_step"] is said["fps"] is said["duration"] is None


def test_two_strides_are_still_refused():
    faults = find_faults("train", ["clip.fps=12", "clip.duration=2"], check_run)
    assert "to keep fps=12, add clip.duration=null" in faults[0][2]


def test_the_log_says_where_each_value_is_from():
    overrides = ["model=videomae_base", "clip.frames=8"]
    line = describe_published(config_of("train", *overrides), overrides, {"model": "videomae_base"})
    assert line.startswith("clips of model=videomae_base: frames=8 (set on the command line); frame_step=4, ")
    assert "size=224, interpolation=bilinear" in line and line.endswith("fusion=mean_probs (as published)")
    choices = {"model": "videomae_base", "experiment": "videomae_staged"}
    line = describe_published(config_of("train", "experiment=videomae_staged"), [], choices)
    assert "frames=8, size=192, interpolation=bicubic, fusion=mean_logits (set by experiment=videomae_staged)" in line
    assert describe_published(config_of("train"), [], {"model": "vit3d_micro"}) is None


@pytest.mark.slow
def test_weights_that_never_saw_such_clips_are_warned_about():
    def warnings(*overrides: str, **of_files: object) -> list[str]:
        return unseen_clips(config_of("train", *overrides), of_files)

    assert warnings("model=vjepa2_vitl") == []
    assert warnings("model=vjepa2_vitl", "clip.size=[256,256]", "clip.frames=8") == []
    assert warnings("model=vjepa2_vitl", "clip.size=32", "clip.std=[1,1,1]") == [
        "clip.size=32 differs from the clips of the pretrained weights, which were trained with clip.size=256",
        "clip.std=[1.0,1.0,1.0] differs from the clips of the pretrained weights, which were trained with "
        "clip.std=[0.229,0.224,0.225]",
    ]
    (color,) = warnings("model=timm_frames", mean=[0.5, 0.5, 0.5], size=224)
    assert color.endswith("which were trained with clip.mean=[0.5,0.5,0.5]")
    assert warnings("model=vit3d_base", "clip.size=64") == []
    assert warnings("model=efficientnet_lite0", mean=[127 / 255] * 3) == []


@pytest.mark.parametrize(
    "model",
    ["r3d_18", "r2plus1d_18", "mc3_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"],
)
def test_the_clips_of_torchvisions_models_are_those_that_it_states(model):
    weights = get_model_weights(model).KINETICS400_V1
    shown, published = weights.transforms(), published_clips(config_of("train", f"model={model}"))
    for key, name in (("frames", "clip_len"), ("fps", "frame_rate")):
        assert published[key] == float(re.search(rf"`{name}=([\d.]+)`", weights.meta["_docs"])[1])
    assert ([published["size"]] * 2, published["short_side"]) == (
        list(shown.crop_size),
        min(shown.resize_size),
    )
    assert (published["mean"], published["std"]) == (list(shown.mean), list(shown.std))
    assert published["interpolation"] == shown.interpolation.value


def test_a_run_keeps_the_clips_that_its_model_brought(tmp_path):
    """One that was started when model=r3d_18 still left 8 frames of 32 pixels in force is resumed with them."""
    before = config_of("train", "model=r3d_18", *[f"clip.{key}={json.dumps(value)}" for key, value in DEFAULT.items()])
    record(tmp_path, before)
    (tmp_path / "summary.json").write_text(json.dumps({"status": "finished"}))
    stored = OmegaConf.load(tmp_path / "config.yaml")
    del stored.model.published  # as it was without the key
    OmegaConf.save(stored, tmp_path / "config.yaml")
    now = config_of("train", "model=r3d_18")
    keep_published(tmp_path, now, Ranks(torch.device("cpu")))
    assert {key: now.clip[key] for key in DEFAULT} == DEFAULT
    check_unchanged(tmp_path, now, "")
    said = config_of("train", "model=r3d_18", "clip.frames=4")
    keep_published(tmp_path, said, Ranks(torch.device("cpu")))
    assert (said.clip.frames, said.clip.size) == (4, 32)
