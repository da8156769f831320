"""Sheets of what a pretrained network makes of videos."""

import numpy as np
import pytest
import torch
from composing import config_of
from PIL import Image

from vidtrain.build import parts as build
from vidtrain.models.masks import WithMasks, masks_of
from vidtrain.runs.examples import _in_pixels, draw_features, draw_masked, heat_colors
from vidtrain.training.distributed import Ranks

SMALL = ["model.encoder.embed_dim=24", "model.encoder.depth=1", "clip.size=32", "clip.frames=4"]
HEADS = {
    "videomae": [f"objective.decoder_{name}" for name in ("dim=24", "depth=1", "heads=4")],
    "vjepa": [f"objective.predictor_{name}" for name in ("dim=24", "depth=1", "heads=4")],
}


def network(name):
    cfg = config_of("train", *SMALL, f"objective={name}", *HEADS[name])
    ranks = Ranks(torch.device("cpu"))
    model = build.trained_model(cfg, 1, ranks)
    return model, WithMasks(build.device_transform(cfg, ranks.device), model)


@pytest.mark.parametrize(("name", "rows"), [("videomae", 3), ("vjepa", 5)])
def test_sheets_have_a_row_for_what_is_shown_and_for_what_came_of_it(tmp_path, name, rows):
    model, transform = network(name)
    clips = torch.randint(0, 256, (2, 2, 3, 4, 32, 32), dtype=torch.uint8)
    inputs = transform(clips)
    draw_masked(model, clips, inputs, tmp_path / "masked.png")
    draw_features(model, clips, inputs, tmp_path / "features.png")
    heights = {path.stem: Image.open(path).height for path in tmp_path.glob("*.png")}
    # rows of one height below a title: two videos of `rows` each, and of two each
    assert heights["masked"] / heights["features"] == pytest.approx((2 * rows + 0.4) / 4.4, rel=0.05)


def test_the_masks_of_evaluation_follow_from_the_clip_alone():
    _, transform = network("vjepa")
    clips = torch.randint(0, 256, (3, 1, 3, 4, 32, 32), dtype=torch.uint8)
    together, alone = transform(clips).masks, transform(clips[1:2]).masks
    for kind, single in zip(together, alone, strict=True):
        count = len(single.hidden[0])
        assert torch.equal(kind.hidden[1, :count], single.hidden[0])
    assert not torch.equal(together[0].hidden[0], together[0].hidden[1])


def test_places_of_tokens_in_pixels():
    model, _ = network("videomae")  # tubelets of 2 frames and 8x8 pixels: 2x4x4 tokens
    hidden = np.zeros((1, 32), dtype=bool)
    hidden[0, 16 + 5] = True  # the second step, row 1, column 1
    pixels = _in_pixels(masks_of(hidden), 0, model, (4, 32, 32))
    assert pixels.sum() == 2 * 8 * 8 and pixels[2:, 8:16, 8:16].all()


def test_what_is_absent_is_gray_and_the_greatest_the_brightest():
    colors = heat_colors(np.array([[[0.0, 1.0, 9.0]]]), np.array([[[False, False, True]]]))
    assert colors[0, 0, 2].tolist() == [0.35] * 3
    assert colors[0, 0, 1].sum() > colors[0, 0, 0].sum()
