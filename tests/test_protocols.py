"""The published protocols (conf/experiment/protocol_*.yaml): frames, boxes and fusion as numbers that the publishers'
own evaluation code gave, run on videos of that many frames and that size.

Of V-JEPA, videos so short that its windows are not drawn.
"""

import numpy as np
import pytest
from composing import config_of

from vidtrain.build import parts as build
from vidtrain.data.augment.geometry import published_crops
from vidtrain.data.sampling.clips import clip_indices, eval_generator

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GRAY = ([0.45, 0.45, 0.45], [0.225, 0.225, 0.225])
# 100 frames: first, second and last of each clip
SSV2_16 = [[0, 4, 62], [36, 40, 98]]
SSV2_64 = [[0, 2, 98], [0, 2, 98]]
# 300 frames at 30 a second
K400_8 = [[0, 4, 62], [33, 37, 95], [66, 70, 128], [99, 103, 161], [132, 136, 194], [165, 169, 227], [198, 202, 260],
          [231, 235, 293]]  # fmt: skip
K400_5 = [[0, 4, 60], [56, 60, 116], [116, 120, 176], [176, 180, 236], [236, 240, 296]]
K400_10 = [[0, 2, 63], [23, 25, 86], [47, 49, 110], [70, 72, 133], [94, 96, 157], [118, 120, 181], [141, 143, 204],
           [165, 167, 228], [188, 190, 251], [212, 214, 275]]  # fmt: skip
HALVES = [[0, 6, 93], [3, 9, 96]]
DRAWN = "as in V-JEPA 2 (windows drawn, seed 0)"
G384 = ("model=vjepa2_vitg", "clip.size=384", "clip.frames=64", "clip.frame_step=2")


@pytest.mark.parametrize(
    ("experiment", "frames", "clips", "width", "lefts", "colors", "line"),
    [
        (("vjepa2_ssv2",), 100, SSV2_16, 341, [0, 42, 84], IMAGENET,
         f"16x4 frames {DRAWN} at 256x256, resized as in V-JEPA, 2 clips x 3 crops, joint"),
        (("vjepa2_ssv2", *G384), 100, SSV2_64, 512, [0, 64, 128], IMAGENET,
         f"64x2 frames {DRAWN} at 384x384, resized as in V-JEPA, 2 clips x 3 crops, joint"),
        (("vjepa2_k400",), 300, K400_8, 341, [0, 42, 84], IMAGENET,
         f"16x4 frames {DRAWN} at 256x256, resized as in V-JEPA, 8 clips x 3 crops, joint"),
        (("vjepa1_ssv2",), 100, SSV2_16, 298, [0, 37, 74], IMAGENET,
         f"16x4 frames {DRAWN} at 224x224, resized as in V-JEPA, 2 clips x 3 crops, joint"),
        (("vjepa1_k400",), 300, K400_8, 298, [0, 37, 74], IMAGENET,
         f"16x4 frames {DRAWN} at 224x224, resized as in V-JEPA, 8 clips x 3 crops, joint"),
        (("videomae_k400",), 300, K400_5, 298, [0, 37, 74], IMAGENET,
         "16x4 frames as in VideoMAE at 224x224, resized as in VideoMAE, 5 clips x 3 crops, mean_probs"),
        (("videomae_k400", "model=videomae_giant"), 300, K400_5, 298, [0, 37, 74], IMAGENET,
         "16x4 frames as in VideoMAE at 224x224, resized as in VideoMAE, 5 clips x 3 crops, mean_probs"),
        (("videomae_ssv2",), 100, HALVES, 298, [0, 37, 74], IMAGENET,
         "16 uniform frames at 224x224, resized as in VideoMAE, 2 clips x 3 crops, mean_probs"),
        (("slowfast_k400",), 300, K400_10, 341, [0, 43, 85], GRAY,
         "32 frames at 15 fps as in PySlowFast at 256x256, resized as in PySlowFast, 10 clips x 3 crops, mean_probs"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) and isinstance(value[0], str) else "",
)  # fmt: skip
def test_what_is_shown_of_a_video_is_as_published(experiment, frames, clips, width, lefts, colors, line):
    name, *overrides = experiment
    cfg = config_of("train", f"experiment=protocol_{name}", *overrides)
    protocol = build.clip_protocol(cfg, training=False)
    shown = clip_indices(frames, np.arange(frames) / 30, protocol, eval_generator(protocol, 0, "a.mp4"))
    assert shown[:, [0, 1, -1]].tolist() == clips
    geometry, size = build.instantiate_component(cfg.augmentation.eval), build.clip_size(cfg)
    boxes = published_crops(geometry, 320, 240, size, cfg.clip.resize)
    assert [box.left for box in boxes] == lefts
    assert {(box.top, box.width, box.height, box.scaled) for box in boxes} == {(0, *size, (width, size[0]))}
    assert (list(cfg.clip.mean), list(cfg.clip.std)) == colors
    assert build.protocol_text(cfg, cfg.model.fusion) == line


def test_slowfast_averages_the_probabilities_of_windows():
    cfg = config_of("train", "experiment=protocol_slowfast_k400")
    assert cfg.model.head.window_fusion == "mean_probs"
    assert config_of("train", "model=slowfast_r50").model.head.window_fusion == "mean_logits"


@pytest.mark.parametrize("name", ["vjepa2_ssv2", "vjepa1_k400"])
def test_probes_learn_from_as_many_clips_as_they_are_judged_by(name):
    cfg = config_of("train", f"experiment=protocol_{name}")
    assert cfg.clip.train_clips == cfg.clip.eval_clips
    assert cfg.augmentation.train.flip == 0
