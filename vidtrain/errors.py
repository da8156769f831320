"""The exceptions that every wing shares, and a check that many parts make."""


class UserError(Exception):
    """A fault that the user can mend.

    Its message names the file, key or value at fault and says what to do, so programs print it
    without a traceback and exit non-zero. Everything else is a defect of ours and keeps its traceback.
    """


class DivergedError(UserError):
    """Training cannot go on: its loss, or what it selects by, is no finite number any more."""


def check_share(**values: float) -> None:
    """Raises `UserError` for a setting that does not lie between 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value}: must lie between 0 and 1")


class Pruned(Exception):
    """A sweep ends this run early, as others do better. Its message says by what; there is nothing to mend."""
