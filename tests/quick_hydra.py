"""Composing in half the time: Hydra and OmegaConf remember what they read, as the tests compose a thousand times.

The results are equal. What a program does without this is seen by the tests that start one with `python -m`.
"""

import copy
from functools import lru_cache
from io import StringIO
from types import SimpleNamespace
from typing import Any, TextIO

import omegaconf.base
from hydra._internal import config_repository, defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf.grammar_parser import parse

_create_interpolation_map = defaults_list._create_interpolation_map


@lru_cache(maxsize=1000)
def _loaded(text: str) -> Any:
    return OmegaConf.load(StringIO(text))


def _load(file: TextIO) -> Any:
    """A copy, as what is returned gets changed."""
    return copy.deepcopy(_loaded(file.read()))


def _make_caching(repository: Any, delegate: Any) -> None:
    """Hydra copies the files' sources in depth; it changes nothing but the list of them."""
    repository.delegate = copy.copy(delegate)
    repository.cache = {}


def _interpolation_map(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
    """Only elements with an interpolation are looked up in it, and there are hardly any."""
    if any(isinstance(each, defaults_list.InputDefault) and each.is_interpolation() for each in defaults):
        return _create_interpolation_map(overrides, defaults, self_added)
    return None


def remember() -> None:
    """From now on they do."""
    omegaconf.base.parse = lru_cache(maxsize=5000)(parse)
    Plugins.instance()  # it imports the source of files anew
    SourcesRegistry.instance().resolve("file").load_config.__globals__["OmegaConf"] = SimpleNamespace(load=_load)
    config_repository.CachingConfigRepository.__init__ = _make_caching
    defaults_list._create_interpolation_map = _interpolation_map
