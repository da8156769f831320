"""The pictures and the page at the end of a run, which take longer to make than a small run to train."""

from collections.abc import Iterator
from contextlib import contextmanager

from vidtrain.runs.report import Classifying

_DRAW = Classifying.draw_pictures


def stop_drawing() -> None:
    """From now on runs of this process end without them; trackers are offered their best.pt as ever."""
    Classifying.draw_pictures = lambda goal, state, log: log.loggers.checkpoint(
        "best", log.run_dir / "checkpoints" / "best.pt"
    )


@contextmanager
def pictures_drawn(drawn: bool = True) -> Iterator[None]:
    """Within it runs have them, or have none."""
    before = Classifying.draw_pictures
    if drawn:
        Classifying.draw_pictures = _DRAW
    else:
        stop_drawing()
    try:
        yield
    finally:
        Classifying.draw_pictures = before
