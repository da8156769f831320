"""Configurations from before the schema had all of its keys: filled in, or refused naming what is unknown."""

import copy

import pytest
from composing import config_of
from omegaconf import OmegaConf

from vidtrain.errors import UserError
from vidtrain.evaluate import as_trained
from vidtrain.stored_config import defaults_of, up_to_date


@pytest.fixture(scope="module")
def composed():
    return config_of("train"), config_of("evaluate", "checkpoint=best.pt", "eval_clips=3")


@pytest.fixture
def stored(composed):
    return copy.deepcopy(OmegaConf.to_container(composed[0]))


def test_what_is_up_to_date_stays_as_it_is(composed, stored):
    assert OmegaConf.to_container(up_to_date(stored, "best.pt")) == stored


def test_keys_that_the_schema_has_gained_get_their_default(composed, stored):
    for group, key in (("clip", "short"), ("data", "time_limit"), ("trainer", "patience")):
        del stored[group][key]
    del stored["init_match"], stored["stage"]["full"]["layer_decay"]
    found = up_to_date(stored, "best.pt")
    assert (found.clip.short, found.data.time_limit, found.trainer.patience) == ("repeat_last", 60.0, None)
    assert (found.init_match, found.stage.full.layer_decay) == (0.9, 1.0)
    assert as_trained(stored, composed[1]).clip.eval_clips == 3


def test_references_stay_references(stored):
    stored["data_root"] = "/elsewhere"
    assert up_to_date(stored, "best.pt").dataset.source.root == "/elsewhere/motion"


def test_the_loss_of_before_there_was_a_choice(stored):
    del stored["loss"]
    stored["trainer"]["label_smoothing"] = 0.2
    found = up_to_date(stored, "best.pt")
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
        up_to_date(stored, "RUN/config.yaml")
    assert str(error.value).startswith(
        "RUN/config.yaml is from another version of vidtrain: its configuration holds clip.stretch, "
        "stage.full.blocks, mode, which this version does not know"
    )


def test_values_of_another_type_are_refused_with_their_key(stored):
    stored["clip"]["frames"] = "many"
    with pytest.raises(
        UserError, match="best.pt is from another version of vidtrain: clip.frames: Value 'many'"
    ):
        up_to_date(stored, "best.pt")


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
    from vidtrain.stored_config import current

    assert current("logger.project=mine") == "logger.wandb.project=mine"
    assert current("logger.wandb.project=mine") == "logger.wandb.project=mine"
    assert current("logger=wandb") == "logger=wandb"
