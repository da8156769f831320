"""What tokens are of: the weights, and the settings that decide them."""

import pytest
import torch

from vidtrain.features.frozen_encoder import weights_digest
from vidtrain.models.timm_frames import TimmFrames

FIRST = {"_target_": "vidtrain.models.timm_frames.TimmFrames", "backbone": "test_resnet", "image_size": 32}


@pytest.fixture(scope="module")
def encoder() -> TimmFrames:
    torch.manual_seed(0)
    return TimmFrames("test_resnet", 32)


def test_settings_that_came_later_change_no_tokens_that_are_there(encoder):
    now = {**FIRST, "input": "rgb", "difference_gain": 1.0, "spatial_size": None}
    assert weights_digest(encoder, now) == weights_digest(encoder, FIRST)
    assert weights_digest(encoder, {**now, "difference_gain": 2.0}) == weights_digest(encoder, FIRST)


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
