"""Composing in a third of the time: Hydra and OmegaConf remember what they read, as the tests compose a thousand times.

The results are equal. What a program does without this is seen by the tests that start one with `python -m`.
"""

import copy
import pickle
from functools import lru_cache
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import omegaconf.base
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf.grammar_parser import parse

from vidtrain.files.folders import CONF

_create_interpolation_map = defaults_list._create_interpolation_map
load_config = CachingConfigRepository.load_config
compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
load_single = ConfigLoaderImpl._load_single_config
_FILES: dict[Any, Any] = {}
_SINGLE: dict[Any, bytes] = {}
_COMPOSED: dict[Any, bytes] = {}


@lru_cache(maxsize=1000)
def _loaded(text: str) -> bytes:
    return pickle.dumps(OmegaConf.load(StringIO(text)), pickle.HIGHEST_PROTOCOL)


def _load(file: TextIO) -> Any:
    """A copy, as what is returned gets changed. Unpickling takes an eighth of the time of `copy.deepcopy`."""
    return pickle.loads(_loaded(file.read()))


def _make_caching(repository: Any, delegate: Any) -> None:
    """Hydra copies the files' sources in depth; it changes nothing but the list of them."""
    repository.delegate = copy.copy(delegate)
    repository.cache = {}


def _places(repository: Any) -> tuple[Any, ...] | None:
    """What the files of conf/ are read with; None if other folders are read too, whose files tests change."""
    sources = repository.get_sources()
    if any(source.scheme() == "file" and Path(source.path) != CONF for source in sources):
        return None
    # programs remove some names: see `use_own_plugins`
    sweepers = ConfigStore.instance().repo["hydra"]["sweeper"]
    return *((source.scheme(), source.path) for source in sources), *sorted(sweepers)


def _load_config(repository: Any, config_path: str) -> Any:
    """A file's content for all that compose; Hydra reads it for its list of defaults alone."""
    places = _places(repository)
    if places is None:
        return load_config(repository, config_path)
    if (places, config_path) not in _FILES:
        _FILES[places, config_path] = repository.delegate.load_config(config_path)
    return _FILES[places, config_path]


def _load_single(loader: Any, default: Any, repo: Any) -> Any:
    """A file's content in its place; a copy, as the merged configuration takes the nodes over."""
    places = _places(repo)
    if places is None:
        return load_single(loader, default, repo)
    key = (places, default.config_path, default.package, default.primary)
    if key not in _SINGLE:
        _SINGLE[key] = pickle.dumps(load_single(loader, default, repo), pickle.HIGHEST_PROTOCOL)
    return pickle.loads(_SINGLE[key])


def _compose(loader: Any, defaults: list[Any], repo: Any) -> Any:
    """The files of a list of defaults, merged; overrides of values come after."""
    places = _places(repo)
    if places is None:
        return compose_defaults(loader, defaults, repo)
    key = (places, *((each.config_path, each.package, each.primary) for each in defaults))
    if key not in _COMPOSED:
        composed = compose_defaults(loader, defaults, repo.delegate)  # with files of its own, which it changes
        _COMPOSED[key] = pickle.dumps(composed, pickle.HIGHEST_PROTOCOL)
    return pickle.loads(_COMPOSED[key])


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
    CachingConfigRepository.__init__ = _make_caching
    CachingConfigRepository.load_config = _load_config
    ConfigLoaderImpl._load_single_config = _load_single
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose
    defaults_list._create_interpolation_map = _interpolation_map
