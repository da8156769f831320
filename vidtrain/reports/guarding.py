"""What only shows results may fail: the numbers it shows are written before, and the program goes on."""

from collections.abc import Callable
from typing import Any, TypeVar

from vidtrain.files.escaping import shown

Made = TypeVar("Made")


def made_or_warned(what: str, make: Callable[[], Made], console: Any) -> Made | None:
    """What `make` gives, or None with a warning on the console that names `what`, such as a path, and the cause."""
    try:
        return make()
    except Exception as error:
        # a full disk, no memory, a font, a name: whatever it is, only the picture is lost
        cause = " ".join(str(error).split()) or "no more is known"
        console.warn(
            f"{shown(what)} could not be made ({type(error).__name__}: {cause[:300]}); the numbers are not concerned"
        )
        return None
