"""The exceptions of all packages, the plural of a word in messages, and checks of settings, whose messages name the key
and the nearest allowed value."""

from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct.

    Its message names the wrong file, key or value and says what to do, so programs print it without a traceback and
    exit with a nonzero status. Any other exception is a bug of vidtrain and keeps its traceback.
    """


class DivergedError(UserError):
    """Training cannot continue, as its loss or its monitored metric is no longer finite."""


class Pruned(Exception):
    """A sweep ends this run early, as other trials do better. The message names the pruner. It is not an error."""


def pluralize(number: int, thing: str) -> str:
    """A number of things in words, such as "1 class" or "2 classes"."""
    return f"{number} {thing}" + ("" if number == 1 else "es" if thing.endswith("s") else "s")


def check_share(**values: float) -> None:
    """Raises `UserError` for a setting that is not between 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value}: must lie between 0 and 1")


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{key}={value!r} is not known; choose one of {', '.join(choices)}.")


def check_positive(key: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{key}={value} is too small; the smallest that fits is 1.")


def check_drop_path(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{key}={value} must be a share from 0 to below 1.")


def check_multiple(key: str, value: int, divisor: int, reason: str) -> None:
    """Raises `UserError` unless `value` is a positive multiple of `divisor`. `reason` says where `divisor` comes from,
    for example "model.encoder.patch_size=16"."""
    if value > 0 and value % divisor == 0:
        return
    below = value // divisor * divisor
    fitting = [str(n) for n in (below, below + divisor) if n > 0] or [str(divisor)]
    raise UserError(f"{key}={value} is not a positive multiple of {reason}; nearest that fit: {', '.join(fitting)}.")


def check_odd(key: str, value: int) -> None:
    """Raises `UserError` for an even kernel size: without a center, it would shift frames and change their number."""
    if value < 1 or value % 2 == 0:
        near = [str(size) for size in (value - 1, value + 1) if size > 0 and size % 2 == 1] or ["1"]
        raise UserError(f"{key}={value} must be odd; nearest that fit: {', '.join(near)}.")
