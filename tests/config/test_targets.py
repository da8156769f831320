"""Ranges and choices of settings; what may stand for an annotated argument, and how it is told to a user."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Literal

import pytest
from omegaconf import OmegaConf
from torch import Tensor

from vidtrain.config.schemas import BenchmarkConfig, ClipSettings, DataSettings, EvaluateConfig
from vidtrain.config.targets import check_settings, fits, spell
from vidtrain.data.augment.geometry import RESIZES
from vidtrain.data.decoding.conversion import INTERPOLATIONS, SIZE_CHANGES
from vidtrain.data.decoding.index import SAMPLE_ASPECTS
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.training.distributed import PRECISIONS
from vidtrain.training.run import TrainerSettings
from vidtrain.training.stages import BATCH_NORMS
from vidtrain.training.validation import METRIC_PREFIXES


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (float | None, "a number, or null"),
        (str | Sequence[str] | None, "text or a list of text, or null"),
        (Sequence[float], "a list of a number"),
        (tuple[float, float], "a list of 2: a number, a number"),
        (tuple[float | Tensor, ...], "a list of a number"),
        (Literal["mean", "first"], "one of mean, first"),
        (Mapping[str, int], "a mapping: {name: ...}"),
        (bool, "true or false"),
        (list, "list"),
        (Tensor, "Tensor"),
    ],
)
def test_annotations_in_words(hint, words):
    assert spell(hint) == words


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (True, int, False),
        ([0.9], tuple[float, float], False),
        ([0.9, 1], tuple[float, float], True),
        (["a"], Mapping[str, int], False),
        ({"a": 1}, Mapping[str, int], True),
        ("a", Sequence[str], False),
        (None, str | None, True),
    ],
)
def test_what_fits(value, hint, expected):
    assert fits(OmegaConf.create({"x": value}).x, hint) is expected


CHOICES = {
    "clip.interpolation": INTERPOLATIONS,
    "clip.sample_aspect": SAMPLE_ASPECTS,
    "clip.resize": RESIZES,
    "data.size_changes": SIZE_CHANGES,
    "trainer.precision": PRECISIONS,
    "trainer.clip_grad_by": ("norm", "value"),
    "trainer.batch_norm": BATCH_NORMS,
    "trainer.monitor": DIRECTIONS,
    "trainer.monitor_weights": METRIC_PREFIXES,
}


@pytest.mark.parametrize("key", CHOICES)
def test_the_choices_of_a_setting_are_those_that_its_code_knows(key):
    group, name = key.split(".")
    schema = {"clip": ClipSettings, "data": DataSettings, "trainer": TrainerSettings}[group]
    (setting,) = (each for each in fields(schema) if each.name == name)
    assert list(setting.metadata["choices"]()) == list(CHOICES[key])


def test_settings_out_of_their_range_are_named_with_what_they_must_be():
    cfg = OmegaConf.structured(EvaluateConfig)
    assert check_settings(cfg, EvaluateConfig) == []
    cfg.eval_clips, cfg.fusion, cfg.frame_order_ablations = 0, "votes", ["reversed", "reverse"]
    assert check_settings(cfg, EvaluateConfig) == [
        ("eval_clips", "0 must be 1 or more"),
        ("fusion", "votes is unknown; did you mean vote?"),
        ("frame_order_ablations", "reverse is unknown; did you mean reversed?"),
    ]


def test_ranges_are_found_in_groups_of_settings():
    cfg = OmegaConf.structured(BenchmarkConfig)
    cfg.steps, cfg.data.decode_timeout_s, cfg.trainer.ema = 1, float("nan"), 1.0
    assert check_settings(cfg, BenchmarkConfig) == [
        ("data.decode_timeout_s", "nan must be above 0 seconds"),
        ("trainer.ema", "1.0 must lie between 0 and 1, such as 0.999; null keeps no average"),
        ("steps", "1 must be 2 or more"),
    ]
