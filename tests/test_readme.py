"""The README's own promises: its example model runs, and its tree names every file."""

import re
import sys
import types
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import vidtrain.models
from vidtrain import build, check
from vidtrain.config import CONF, register_schemas
from vidtrain.training.optim import parameter_groups
from vidtrain.training.settings import PhaseSettings
from vidtrain.training.stages import apply_phase

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


def test_the_example_model_trains(monkeypatch):
    module = types.ModuleType("vidtrain.models.conv_frames")
    exec(block("python"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(vidtrain.models, "conv_frames", module, raising=False)
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train")
    cfg.model = OmegaConf.create(block("yaml"))
    assert check.check_run(cfg, training=False) == []
    model = build.model(cfg, 10, check.ranks_to_come())
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.5))
    assert {group["name"] for group in groups} >= {"head", "encoder.layer01"}
    logits = model(torch.randn(2, 3, 3, 8, 32, 32))
    assert logits.shape == (2, 3, 10)
    logits.sum().backward()


def test_the_tree_names_every_file():
    package = Path(__file__).resolve().parents[1] / "vidtrain"
    for path in package.rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"^ +{path.name} ", README, re.MULTILINE), (
                f"{path.name} is not in the README's tree"
            )


def test_the_table_names_every_option():
    for group in (
        "dataset",
        "augmentation",
        "optimizer",
        "schedule",
        "stage",
        "trainer",
        "logger",
        "experiment",
        "debug",
    ):
        row = re.search(rf"^\| {group} \| (.*) \|$", README, re.MULTILINE)[1]
        for path in (CONF / group).glob("*.yaml"):
            assert re.search(rf"\b{path.stem}\b", row), f"{group}={path.stem} is not in the README's table"
