"""Every file of conf/ is composed and built: as an option of its group, or as a program."""

import itertools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vidtrain.app import check
from vidtrain.app.view_tables import as_trained
from vidtrain.build import parts as build
from vidtrain.config.targets import CONF, check_targets, register_schemas

register_schemas()

OPTIONS = sorted(
    (str(path.parent.relative_to(CONF)), path.stem)
    for path in CONF.glob("*/**/[!_]*.yaml")  # the others are what options have in common
    if path.parts[len(CONF.parts)] != "hydra" and path.stem != "module"  # whose network the user names
)


@pytest.fixture(autouse=True)
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def override(group: str, option: str) -> list[str]:
    if group == "stage/phase":
        return [f"+stage/phase@stage.more={option}"]
    if group == "model/head":
        return ["model=timm_frames", f"model/head={option}"]
    if option == "unlabeled":
        return ["objective=videomae", "dataset=unlabeled", "dataset.source.path=videos"]
    if option == "salt":  # whose teacher must be there
        return ["objective=salt", "objective.momentum=0.99"]
    if option == "vjepa2_1":  # needs more blocks than the default model has
        return ["objective=vjepa2_1", "model.encoder.depth=4"]
    # the loop sees it as it is; large models are built without memory by the check
    return [f"{group}={option}"]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda part: part.replace("/", "."))
def test_every_option_composes_and_has_no_fault(group, option):
    cfg = compose("train", override(group, option))
    assert check.check_run(cfg) == []
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


# every two options of two groups meet
PAIRS = itertools.product(("adamw", "adam", "sgd"), ("wsd", "cosine", "multistep", "constant"))


@pytest.mark.parametrize(
    ("optimizer", "schedule", "stage"),
    [(*pair, ("full", "progressive")[(number + number // 4) % 2]) for number, pair in enumerate(PAIRS)],
)
def test_groups_go_together(optimizer, schedule, stage):
    cfg = compose("train", [f"optimizer={optimizer}", f"schedule={schedule}", f"stage={stage}"])
    assert check.check_run(cfg) == []


def test_the_default_model_is_built_from_the_seed_alone():
    cfg = compose("train", ["model=vit3d_micro"])
    ranks = check.unjoined_ranks()
    first = build.model(cfg, 10, ranks).state_dict()
    torch.manual_seed(99)
    again = build.model(cfg, 10, ranks).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_progressive_lists_its_phases_in_order():
    cfg = compose("train", ["stage=progressive"])
    phases = OmegaConf.to_object(cfg.stage)
    assert [(name, phase.encoder_blocks, phase.duration) for name, phase in phases.items()] == [
        ("head_only", 0, "20%"),
        ("unfreeze_last", 2, "30%"),
        ("full", None, "50%"),
    ]


def test_the_evaluation_program_composes_and_changes_what_it_is_asked_to():
    trained = OmegaConf.to_container(compose("train"), resolve=True)
    cfg = compose("evaluate", ["checkpoint=best.pt", "eval_clips=4", "crops=3", "fusion=mean_probs", "data_root=d"])
    assert check_targets(cfg) == []
    changed = as_trained(trained, cfg)
    assert (changed.clip.eval_clips, changed.augmentation.eval.crops, changed.model.fusion) == (
        4,
        3,
        "mean_probs",
    )
    assert check.check_run(changed) == []
    assert build.protocol_text(changed, "mean_probs") == "8x3 frames at 32x32, 4 clips x 3 crops, mean_probs"


def test_every_yaml_says_what_it_is():
    for path in CONF.rglob("*.yaml"):
        lines = path.read_text().splitlines()
        if path.parts[len(CONF.parts)] != "hydra":
            assert any(line.startswith("# ") and "@package" not in line for line in lines[:3]), path


def test_conf_lies_beside_the_package():
    assert Path(__file__).resolve().parents[1] / "conf" == CONF
