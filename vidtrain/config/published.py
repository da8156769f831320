"""The clips that a model was published with.

A model option holds them as `published`. `clip` takes from there what neither the command line nor a recipe sets: its
defaults in the schema are `${of_model:KEY,DEFAULT}`. The fusion of such an option is a reference to `published` too.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf

STRIDES = ("frame_step", "fps", "duration")
KEYS = (
    *(f"clip.{key}" for key in ("frames", *STRIDES, "size", "interpolation", "mean", "std")),
    "model.fusion",
)
FUSION = "${.published.fusion}"
COLOR_ROUNDING = 0.005  # publishers round means and deviations differently


def register_published() -> None:
    """Makes `${of_model:KEY,DEFAULT}` known to OmegaConf."""
    OmegaConf.register_new_resolver("of_model", _of_model, replace=True)


def _of_model(key: str, default: Any, *, _root_: DictConfig, _parent_: DictConfig) -> Any:
    """The published value of `key`, else the default.

    A clip has one stride, so a stride that is set in another way replaces it, and so does sampling=uniform.
    """
    published = published_clips(_root_)
    if key in STRIDES:
        others = [other for other in STRIDES if other != key and not _refers_to_model(_parent_, other)]
        if _parent_.sampling == "uniform" or any(_parent_[other] is not None for other in others):
            return None
        if not published.keys().isdisjoint(STRIDES):
            default = None
    return published[key] if key in published else default


def published_clips(cfg: DictConfig) -> dict[str, Any]:
    """The clips that the chosen model was published with, by keys of vidtrain.models.classifier.PUBLISHED."""
    published = OmegaConf.select(cfg, "model.published", default=None)
    return {str(key): _plain(value) for key, value in published.items()} if published else {}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value


def _refers_to_model(node: Any, key: str) -> bool:
    # `key in node` would follow the reference, and that those of the other strides
    child = node._get_node(key) if isinstance(node, DictConfig) and key in node.keys() else None  # noqa: SIM118
    written = None if child is None else child._value()
    return isinstance(written, str) and (written.startswith("${of_model:") or written == FUSION)


def unset_keys(cfg: DictConfig) -> list[str]:
    """Those of `KEYS` that neither the command line nor a recipe sets."""
    parts = {key: key.split(".") for key in KEYS}
    return [
        key for key, (group, name) in parts.items() if group in cfg and _refers_to_model(cfg[group], name)
    ]


def put_published(cfg: DictConfig) -> None:
    """Writes into `cfg` what its `unset_keys` refer to."""
    for key in unset_keys(cfg):
        OmegaConf.update(cfg, key, OmegaConf.select(cfg, key))


def with_published(cfg: DictConfig) -> DictConfig:
    """A copy to be stored: a reference to the model's clips would count as computed where it is read."""
    stored = copy.deepcopy(cfg)
    put_published(stored)
    return stored


def describe_published(cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]) -> str | None:
    """A line that says for each of `KEYS` where its value is from; None for a model option without `published`.

    `overrides` are those of the command line, `choices` the options of the groups.
    """
    published, unset = published_clips(cfg), unset_keys(cfg)
    if not published:
        return None
    recipes = [f"{group}={choices[group]}" for group in ("experiment", "debug") if choices.get(group)]
    origins: dict[str, list[str]] = {}
    for key in KEYS:
        name, value = key.split(".")[1], _plain(OmegaConf.select(cfg, key))
        if value is None:
            continue
        if name in published and value == published[name]:
            origin = "as published"
        elif key in unset:
            origin = "by default"
        elif any(each.lstrip("+").startswith(f"{key}=") for each in overrides):
            origin = "by the command line"
        else:
            origin = f"by {' '.join(recipes) or 'the configuration'}"
        origins.setdefault(origin, []).append(f"{name}={value}")
    return f"clips of model={choices['model']}: " + "; ".join(
        f"{origin} {', '.join(texts)}" for origin, texts in origins.items()
    )


def unseen_clips(cfg: DictConfig, sources: Sequence[str], of_files: Mapping[str, Any]) -> list[str]:
    """A warning for each of size, mean and std in which clips differ from what the weights `sources` have seen, as far
    as `of_files`, what their files tell, their names and the model option say."""
    seen = published_clips(cfg) | dict(of_files)
    for source in sources:
        if source.startswith("timm:"):
            from timm import get_pretrained_cfg

            weights = get_pretrained_cfg(source.removeprefix("timm:"))
            if weights is not None:
                seen |= {"size": weights.input_size[-1], "mean": list(weights.mean), "std": list(weights.std)}
    warnings = []
    for key in ("size", "mean", "std"):
        value = _plain(cfg.clip[key])
        if key in seen and not _is_near(value, seen[key], 0 if key == "size" else COLOR_ROUNDING):
            shown, trained = (str(each).replace(" ", "") for each in (value, seen[key]))
            warnings.append(
                f"the pretrained weights have never seen clip.{key}={shown}: they were trained with {trained}"
            )
    return warnings


def _is_near(value: Any, other: Any, tolerance: float) -> bool:
    """Whether lists of numbers differ by `tolerance` at most; one number stands for two equal ones."""
    one, two = (each if isinstance(each, list) else [each, each] for each in (value, other))
    return all(abs(a - b) <= tolerance for a, b in zip(one, two, strict=True))
