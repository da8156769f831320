"""What may stand for an annotated argument, and how the annotation is told to a user."""

from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
from omegaconf import OmegaConf
from torch import Tensor

from vidtrain.config.type_checks import fits, spell


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
