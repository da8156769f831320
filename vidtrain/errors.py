"""The exceptions that every wing shares."""


class UserError(Exception):
    """A fault that the user can mend.

    Its message names the file, key or value at fault and says what to do, so programs print it
    without a traceback and exit non-zero. Everything else is a defect of ours and keeps its traceback.
    """


class DivergedError(UserError):
    """Training cannot go on: its loss, or what it selects by, is no finite number any more."""


class Pruned(Exception):
    """A sweep ends this run early, as others do better. Its message says by what; there is nothing to mend."""
