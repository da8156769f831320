"""The pictures and the page at the end of a run, which take longer to make than a small run to train."""

from collections.abc import Iterator
from contextlib import contextmanager

from vidtrain.runs import report

_DRAW = report.draw_pictures


def stop_drawing() -> None:
    """From now on runs of this process end without them; trackers are offered their best.pt as ever."""
    report.draw_pictures = lambda data, result, state, log, console: log.checkpoint(
        "best", log.run_dir / "checkpoints" / "best.pt"
    )


@contextmanager
def pictures_drawn(drawn: bool = True) -> Iterator[None]:
    """Within it runs have them, or have none."""
    before = report.draw_pictures
    if drawn:
        report.draw_pictures = _DRAW
    else:
        stop_drawing()
    try:
        yield
    finally:
        report.draw_pictures = before
