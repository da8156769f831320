"""Finding on disk what a dataset's annotations name, whatever suffix it has there."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.sources.class_folders import SUFFIXES, walk
from vidtrain.errors import UserError

NAMED = 10

logger = logging.getLogger(__name__)


class VideoFiles:
    """The videos below `root`, by their path there without its suffix."""

    def __init__(self, root: str):
        if not Path(root).is_dir():
            raise UserError(f"no folder {root} of videos")
        self.root = root
        self._paths: dict[str, list[str]] = {}
        start = len(os.path.join(root, ""))
        for path in walk(Path(root), SUFFIXES):
            self._paths.setdefault(os.path.splitext(path[start:])[0], []).append(path)

    def find(self, *stems: str) -> str | None:
        """The file of the first of `stems` that there is. Raises `UserError` where that has two."""
        for stem in stems:
            if stem in self._paths:
                if len(self._paths[stem]) > 1:
                    raise UserError(f"two files of one name: {', '.join(self._paths[stem])}; remove one")
                return self._paths[stem][0]
        return None


def check_missing(missing: Sequence[str], total: int, root: str, max_share: float, allow: str) -> None:
    """Raises `UserError` if more than `max_share` of the `total` annotated videos are `missing`; warns of fewer.

    `allow` says what lets them be missing.
    """
    if not missing:
        return
    named = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
    what = f"{len(missing)} of {total} annotated videos are not in {root}: {named}"
    if len(missing) > max_share * total:
        raise UserError(f"{what}; to go on without them, say {allow}")
    logger.warning("%s", what)
