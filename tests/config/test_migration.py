"""Configurations from before the schema had all of its keys: filled in, or refused naming what is unknown."""

import copy

import pytest
from composing import config_of
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.utils import get_object
from omegaconf import OmegaConf

from vidtrain.app.view_tables import as_trained
from vidtrain.config.renames import (
    TARGETS,
    accept_old_keys,
    migrate,
    rename_arguments,
    rename_override,
    rename_settings,
    with_first_names,
)
from vidtrain.config.trust import defaults_of
from vidtrain.errors import UserError


@pytest.fixture(scope="module")
def composed():
    return config_of("train"), config_of("evaluate", "checkpoint=best.pt", "eval_clips=3")


@pytest.fixture
def stored(composed):
    return copy.deepcopy(OmegaConf.to_container(composed[0]))


def test_what_is_migrate_stays_as_it_is(composed, stored):
    assert OmegaConf.to_container(migrate(stored, "best.pt")) == stored


def test_keys_that_the_schema_has_gained_get_their_default(composed, stored):
    for group, key in (("clip", "short_video_policy"), ("data", "decode_timeout_s"), ("trainer", "patience")):
        del stored[group][key]
    del stored["init_match"], stored["stage"]["full"]["layer_decay"]
    found = migrate(stored, "best.pt")
    assert (found.clip.short_video_policy, found.data.decode_timeout_s, found.trainer.patience) == (
        "repeat_last",
        60.0,
        None,
    )
    assert (found.init_match, found.stage.full.layer_decay) == (1.0, 1.0)
    assert as_trained(stored, composed[1]).clip.eval_clips == 3


def test_references_stay_references(stored):
    stored["data_root"] = "/elsewhere"
    assert migrate(stored, "best.pt").dataset.source.root == "/elsewhere/motion"


def test_the_loss_of_before_there_was_a_choice(stored):
    del stored["loss"]
    stored["trainer"]["label_smoothing"] = 0.2
    found = migrate(stored, "best.pt")
    assert OmegaConf.to_container(found.loss) == {
        "_target_": "vidtrain.training.losses.CrossEntropy",
        "label_smoothing": 0.2,
        "class_weights": None,
    }
    assert "label_smoothing" not in found.trainer


def test_keys_that_are_unknown_are_all_named(stored):
    stored["clip"]["stretch"] = 1
    stored["stage"]["full"]["blocks"] = 2
    stored["mode"] = "fast"
    stored["dataset"]["anything"] = 1  # components are open
    with pytest.raises(UserError) as error:
        migrate(stored, "RUN/config.yaml")
    assert str(error.value).startswith(
        "RUN/config.yaml is from another version of vidtrain: its configuration holds clip.stretch, "
        "stage.full.blocks, mode, which this version does not know"
    )


def test_values_of_another_type_are_refused_with_their_key(stored):
    stored["clip"]["frames"] = "many"
    with pytest.raises(UserError, match="best.pt is .*clip.frames: Value 'many'"):
        migrate(stored, "best.pt")


def test_defaults_are_those_of_the_constructors():
    config = OmegaConf.create(
        {
            "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1.0},
            "gone": {"_target_": "torch.optim.Nothing"},
        }
    )
    found = defaults_of(config)
    assert found["optimizer.betas"] == [0.9, 0.999] and "optimizer.lr" not in found
    assert not any(key.startswith("gone") for key in found)


def test_a_logger_override_from_before_there_could_be_several_is_read():
    assert rename_override("logger.project=mine") == "logger.wandb.project=mine"
    assert rename_override("logger.wandb.project=mine") == "logger.wandb.project=mine"
    assert rename_override("logger=wandb") == "logger=wandb"


def test_components_that_have_another_name_since(stored):
    stored["augmentation"]["temporal"]["_target_"] = "vidtrain.data.temporal.TemporalJitter"
    found = migrate(stored, "best.pt")
    assert found.augmentation.temporal._target_ == "vidtrain.data.sampling.temporal.TemporalJitter"
    new = "logger.wandb._target_=vidtrain.tracking.trackers.WandbLogger"
    for old in ("wandb_mirror.WandbMirror", "loggers.wandb_logger.WandbMirror", "loggers.wandb_logger.WandbLogger"):
        assert rename_override(f"logger.wandb._target_=vidtrain.tracking.{old}") == new


@pytest.mark.parametrize("target", TARGETS.values())
def test_the_new_names_lead_to_something(target):
    get_object(target)


OLD_OVERRIDES = {
    "clip.short=wrap": "clip.short_video_policy=wrap",
    "++clip.train_copies=2": "++clip.repeated_augmentation=2",
    "clip.sampling=dense,reference": "clip.sampling=dense,vjepa2",
    "data.balance=0.5": "data.class_balanced_sampling=0.5",
    "trainer.max_fault_share=0.1": "trainer.max_unreadable_fraction=0.1",
    "data.time_limit=5": "data.decode_timeout_s=5",
    "trainer.one_batch=true": "trainer.overfit_one_batch=true",
}


def test_overrides_are_read_by_their_old_names_with_a_warning_that_tells_the_new():
    told = []
    assert rename_arguments([*OLD_OVERRIDES, "-m", "seed=1"], "train", told.append) == [
        *OLD_OVERRIDES.values(),
        "-m",
        "seed=1",
    ]
    assert told == [f"{old} is called {new} now" for old, new in OLD_OVERRIDES.items()]
    assert rename_override("probes=[reversed]", "evaluate") == "frame_order_ablations=[reversed]"
    assert rename_override("short=wrap", "evaluate") == "short_video_policy=wrap"
    assert rename_override("time_limit=5", "predict") == "decode_timeout_s=5"
    assert rename_override("probes", "evaluate") == "probes"  # a path


def test_a_stored_configuration_of_old_names_is_that_of_the_new(composed, stored):
    before = copy.deepcopy(stored)
    for group, old, new in (
        ("clip", "short", "short_video_policy"),
        ("clip", "train_copies", "repeated_augmentation"),
        ("data", "balance", "class_balanced_sampling"),
        ("data", "time_limit", "decode_timeout_s"),
        ("trainer", "max_fault_share", "max_unreadable_fraction"),
        ("trainer", "one_batch", "overfit_one_batch"),
    ):
        stored[group][old] = stored[group].pop(new)
    assert OmegaConf.to_container(migrate(stored, "best.pt")) == before
    stored["clip"]["sampling"] = "reference"
    assert migrate(stored, "best.pt").clip.sampling == "vjepa2"


def test_digests_are_made_of_the_first_names():
    now = {"short_video_policy": "wrap", "sampling": "vjepa2", "size": 32}
    assert with_first_names("clip", now) == {"short": "wrap", "sampling": "reference", "size": 32}
    before = {"clip.short": "wrap", "clip.sampling": "reference", "split": "val"}
    assert rename_settings(before) == {
        "clip.short_video_policy": "wrap", "clip.sampling": "vjepa2", "split": "val",
    }  # fmt: skip


def test_a_users_yaml_of_old_names_is_composed_with_a_warning(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "trainer").mkdir()
    experiment = "# @package _global_\nclip:\n  sampling: reference\n  short: ${trainer.device}\n"
    (tmp_path / "experiment/mine.yaml").write_text(experiment)
    (tmp_path / "trainer/mine.yaml").write_text("one_batch: true\n")
    told = []
    monkeypatch.setattr(ConfigLoaderImpl, "_load_single_config", ConfigLoaderImpl._load_single_config)
    accept_old_keys("train", told.append)
    folder = f"hydra.searchpath=[file://{tmp_path}]"
    for _ in range(2):
        found = config_of("train", "experiment=mine", "trainer=mine", "trainer.device=wrap", folder)
    assert (found.clip.sampling, found.clip.short_video_policy) == ("vjepa2", "wrap")
    assert found.trainer.overfit_one_batch is True
    assert len(told) == 3
    assert any("trainer/mine.yaml: trainer.one_batch is called trainer.overfit_one_batch now" in text for text in told)
