"""What tokens are of: the weights, and the settings that decide them."""

import pytest
import torch
from composing import config_of

from vidtrain.app.view_tables import view_settings
from vidtrain.config.references import to_dict
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.runs.frozen_encoder import protocol_digest, weights_digest

FIRST = {"_target_": "vidtrain.models.timm_frames.TimmFrames", "backbone": "test_resnet", "image_size": 32}


@pytest.fixture(scope="module")
def encoder() -> TimmFrames:
    torch.manual_seed(0)
    return TimmFrames("test_resnet", 32)


def test_settings_that_came_later_change_no_tokens_that_are_there(encoder):
    now = {**FIRST, "input": "rgb", "difference_gain": 1.0, "spatial_size": None}
    assert weights_digest(encoder, now) == weights_digest(encoder, FIRST)
    assert weights_digest(encoder, {**now, "difference_gain": 2.0}) == weights_digest(encoder, FIRST)


def test_how_frames_are_resized_is_part_of_what_tokens_and_views_are_of():
    cfg = config_of("train", "model=vjepa1_vitl")
    usual, published = (
        to_dict(cfg, resolve=True),
        config_of("train", "model=vjepa1_vitl", "clip.resize=vjepa2"),
    )
    before = {**usual, "clip": {key: value for key, value in usual["clip"].items() if key != "resize"}}
    for training in (False, True):
        digest = protocol_digest(usual, training, 1)
        assert digest == protocol_digest(before, training, 1)  # tokens from before there was a choice are found
        assert digest != protocol_digest(to_dict(published, resolve=True), training, 1)
    assert "clip.resize" not in view_settings(cfg)
    assert view_settings(published)["clip.resize"] == "vjepa2"


def test_other_inputs_have_other_tokens(encoder):
    digests = {
        weights_digest(encoder, {**FIRST, **settings})
        for settings in (
            {},
            {"input": "difference", "difference_gain": 1.0},
            {"input": "difference", "difference_gain": 2.0},
            {"input": "both", "difference_gain": 1.0},
            {"spatial_size": 2},
        )
    }
    assert len(digests) == 5
