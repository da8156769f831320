"""Finding on disk what a dataset's annotations name, whatever suffix it has there."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.manifest.class_names import one_spelling
from vidtrain.data.sources.class_folders import SUFFIXES, walk
from vidtrain.errors import UserError

NAMED = 10

logger = logging.getLogger(__name__)


class VideoFiles:
    """The videos below `root`, by their path there without its suffix, in any of Unicode's forms."""

    def __init__(self, root: str):
        if not Path(root).is_dir():
            raise UserError(f"no folder {root} of videos")
        self.root = root
        self._paths: dict[str, list[str]] = {}
        self._alike: dict[
            str, list[str]
        ] = {}  # by names in one spelling, as annotations and disk may differ in that
        start = len(os.path.join(root, ""))
        for path in walk(Path(root), SUFFIXES):
            stem = os.path.splitext(path[start:])[0]
            self._paths.setdefault(stem, []).append(path)
            self._alike.setdefault(_one_spelling(stem), []).append(path)

    def find(self, *stems: str) -> str | None:
        """The file of the first of `stems` that there is. Raises `UserError` where that has two."""
        asked = [(self._paths, stem) for stem in stems] + [
            (self._alike, _one_spelling(stem)) for stem in stems
        ]
        for held, stem in asked:
            if stem in held:
                if len(held[stem]) > 1:
                    raise UserError(f"two files of one name: {', '.join(held[stem])}; remove one")
                return held[stem][0]
        return None


def _one_spelling(path: str) -> str:
    return os.sep.join(map(one_spelling, path.split(os.sep)))


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
