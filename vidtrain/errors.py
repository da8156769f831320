"""The one exception that every wing shares."""


class UserError(Exception):
    """A fault that the user can mend.

    Its message names the file, key or value at fault and says what to do, so programs print it
    without a traceback and exit non-zero. Everything else is a defect of ours and keeps its traceback.
    """
