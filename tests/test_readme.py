"""The README's own promises: its example model runs, and its tree names every file."""

import ast
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from composing import config_of
from omegaconf import OmegaConf

import vidtrain.training
from vidtrain.app import check
from vidtrain.build import parts as build
from vidtrain.config.targets import CONF
from vidtrain.training.run import PhaseSettings
from vidtrain.training.schedules import in_steps
from vidtrain.training.stages import apply_phase, parameter_groups

ROOT = Path(__file__).resolve().parents[1]
README, OWN_PARTS = (ROOT / "README.md").read_text(), ROOT / "experiments/own_parts"


def test_the_example_model_trains(monkeypatch):
    monkeypatch.syspath_prepend(str(OWN_PARTS))
    cfg = config_of("train")
    cfg.model = OmegaConf.load(OWN_PARTS / "conf/model/conv_frames.yaml")
    assert check.check_run(cfg, training=False) == []
    model = build.model(cfg, 10, check.unjoined_ranks())
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.5))
    assert {group["name"] for group in groups} >= {"head", "encoder.layer01"}
    logits = model(torch.randn(2, 3, 3, 8, 32, 32))
    assert logits.shape == (2, 3, 10)
    logits.sum().backward()


@dataclass(frozen=True)
class InverseRoot:
    """A schedule as the README describes one: a frozen dataclass (step, total_steps) -> factor."""

    warmup_steps: int = 10

    def __call__(self, step: int, total_steps: int) -> float:
        return min(step / self.warmup_steps, (self.warmup_steps / step) ** 0.5)


class Text:
    def __call__(self, step: int, total_steps: int) -> str:
        return "half"


class Nothing:
    pass


def test_a_schedule_is_one_frozen_dataclass(monkeypatch):
    module = types.ModuleType("vidtrain.training.inverse_root")
    module.InverseRoot, module.Text, module.Nothing = InverseRoot, Text, Nothing
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(vidtrain.training, "inverse_root", module, raising=False)
    cfg = config_of("train")
    cfg.schedule.lr = {"_target_": "vidtrain.training.inverse_root.InverseRoot", "warmup_steps": 4}
    assert check.check_run(cfg) == []
    schedule = in_steps(build.instantiate_component(cfg.schedule.lr), 100, 10)
    assert [schedule(step, 100) for step in (1, 4, 16)] == [0.25, 1.0, 0.5]
    for wrong, why in (("Text", "gives 'half' at step 1"), ("Nothing", "is not a schedule")):
        cfg.schedule.lr = {"_target_": f"vidtrain.training.inverse_root.{wrong}"}
        [(key, said)] = check.check_run(cfg)
        assert key == "schedule" and why in said


PACKAGE = Path(__file__).resolve().parents[1] / "vidtrain"


@pytest.mark.parametrize("init", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_every_folder_says_what_its_files_are(init):
    says = ast.get_docstring(ast.parse(init.read_text()))
    named = set(re.findall(r"^(\w+\.py) +\S", says, re.MULTILINE))
    assert named == {path.name for path in init.parent.glob("*.py")} - {"__init__.py"}
    for folder in init.parent.iterdir():
        if (folder / "__init__.py").is_file():
            assert f"{folder.name}/" in says


def test_the_tree_names_every_program():
    for path in CONF.glob("[!_]*.yaml"):
        assert re.search(rf"^ +{path.stem}.py ", README, re.MULTILINE), f"{path.stem}.py is not in the README's tree"


def test_the_table_names_every_model():
    section = README[README.index("## Models and published weights") :]
    rows = re.findall(r"^\| ([\w{}, ]+) \|", section, re.MULTILINE)
    named = set()
    for name in re.findall(r"\w+(?:\{[^}]*\})?", " ".join(rows)):
        stem, _, endings = name.partition("{")
        named |= {stem + ending.strip(" }") for ending in endings.split(",")}
    assert {path.stem for path in (CONF / "model").glob("[!_]*.yaml")} <= named


def test_the_table_names_every_option():
    for group in (
        "dataset",
        "objective",
        "augmentation",
        "loss",
        "optimizer",
        "schedule",
        "stage",
        "trainer",
        "logger",
        "experiment",
        "debug",
        "hydra/launcher",
    ):
        row = re.search(rf"^\| {group} \| (.*) \|$", README, re.MULTILINE)[1]
        for path in (CONF / group).glob("*.yaml"):
            assert re.search(rf"\b{path.stem}\b", row), f"{group}={path.stem} is not in the README's table"
