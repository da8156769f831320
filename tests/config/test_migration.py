"""Configurations from before the schema had all of its keys: filled in, or refused naming what is unknown."""

import copy

import pytest
from composing import config_of
from hydra.utils import get_object
from omegaconf import OmegaConf

from vidtrain.config.migration import defaults_of, migrate
from vidtrain.config.renames import TARGETS, rename_override
from vidtrain.errors import UserError
from vidtrain.evaluator.options import as_trained


@pytest.fixture(scope="module")
def composed():
    return config_of("train"), config_of("evaluate", "checkpoint=best.pt", "eval_clips=3")


@pytest.fixture
def stored(composed):
    return copy.deepcopy(OmegaConf.to_container(composed[0]))


def test_what_is_migrate_stays_as_it_is(composed, stored):
    assert OmegaConf.to_container(migrate(stored, "best.pt")) == stored


def test_keys_that_the_schema_has_gained_get_their_default(composed, stored):
    for group, key in (("clip", "short"), ("data", "time_limit"), ("trainer", "patience")):
        del stored[group][key]
    del stored["init_match"], stored["stage"]["full"]["layer_decay"]
    found = migrate(stored, "best.pt")
    assert (found.clip.short, found.data.time_limit, found.trainer.patience) == ("repeat_last", 60.0, None)
    assert (found.init_match, found.stage.full.layer_decay) == (0.9, 1.0)
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
    with pytest.raises(
        UserError, match="best.pt is from another version of vidtrain: clip.frames: Value 'many'"
    ):
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
    new = "logger.wandb._target_=vidtrain.tracking.loggers.wandb_logger.WandbLogger"
    for old in ("wandb_mirror.WandbMirror", "loggers.wandb_logger.WandbMirror"):
        assert rename_override(f"logger.wandb._target_=vidtrain.tracking.{old}") == new


@pytest.mark.parametrize("target", TARGETS.values())
def test_the_new_names_lead_to_something(target):
    get_object(target)
