"""Overrides that hold several values, and each of those by itself."""

from hydra.core.override_parser.types import Override

from vidtrain.bare_words import in_quotes


def values(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [first_value(override)]


def first_value(override: Override) -> str:
    """An override with its only value, or the first of several."""
    key = override.get_key_element()
    if override.is_delete() and override.value() is None:
        return key
    if override.is_interval_sweep():
        return f"{key}={override.value().start}"
    if override.is_sweep_override():
        return f"{key}={next(iter(override.sweep_string_iterator()))}"
    return f"{key}={override.get_value_element_as_str()}"


def quoted(key: str, value: str) -> str:
    """`key='value'`, whatever characters it has."""
    return f"{key}={in_quotes(value)}"
