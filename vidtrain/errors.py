"""The exceptions that every wing shares, and checks of settings that raise them: with the key at fault, and the nearest
value that fits."""

from collections.abc import Iterable


class UserError(Exception):
    """A fault that the user can mend.

    Its message names the file, key or value at fault and says what to do, so programs print it
    without a traceback and exit non-zero. Everything else is a defect of ours and keeps its traceback.
    """


class DivergedError(UserError):
    """Training cannot go on: its loss, or what it selects by, is no finite number any more."""


class Pruned(Exception):
    """A sweep ends this run early, as others do better. Its message says by what; there is nothing to mend."""


def check_share(**values: float) -> None:
    """Raises `UserError` for a setting that does not lie between 0 and 1."""
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
    """`reason` says where the divisor comes from, for example "model.encoder.patch_size=16"."""
    if value > 0 and value % divisor == 0:
        return
    below = value // divisor * divisor
    fitting = [str(n) for n in (below, below + divisor) if n > 0] or [str(divisor)]
    raise UserError(
        f"{key}={value} is not a positive multiple of {reason}; nearest that fit: {', '.join(fitting)}."
    )


def check_odd(key: str, value: int) -> None:
    """A kernel of even size has no middle: it would shift frames and change their number."""
    if value < 1 or value % 2 == 0:
        near = [str(each) for each in (value - 1, value + 1) if each > 0 and each % 2 == 1] or ["1"]
        raise UserError(f"{key}={value} must be odd; nearest that fit: {', '.join(near)}.")
