"""Manifests kept on disk: a source is read once, then mapped into the memory of all processes and runs.

    folder/manifests/SOURCE-CONTENTS/
      splits.json         the names of the splits, and what the source warned of
      {train,val,test}/   a .npy file for each column

SOURCE stands for the source's settings, CONTENTS for the files that it reads, or, where it does not say which
those are, for what it found.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vidtrain.data.manifest.manifest import Manifest, Source
from vidtrain.errors import UserError
from vidtrain.files.folders import check_links

# A run that lasts for weeks may still have one open, perhaps on another machine, where removing it would end that run.
KEEP_DAYS = 30
UNFINISHED = ".unfinished-"
SPLITS = "splits.json"
SECONDS_A_DAY = 86_400
# To be raised when sources make other manifests of the same files, or manifests are stored in another way
FORMAT = 4

logger = logging.getLogger(__name__)


def open_manifests(source: Source, folder: Path) -> dict[str, Manifest]:
    """The splits of `source`, mapped into memory from files below `folder`, which is the dataset's own.

    A source with `inputs()` is read when it or one of those files is new or has changed (by path, size and time of
    modification), else nothing is parsed. One without is read every time. Processes that start together may
    all read it; what they store is the same. Manifests that nobody has opened for 30 days are removed.

    Raises `UserError` where `folder` cannot be written, and what the source raises.
    """
    kept = Path(folder).absolute() / "manifests"
    check_links(kept.parent)
    inputs = source.inputs() if hasattr(source, "inputs") else None
    # before they are read: files that change meanwhile are read again next time
    state = None if inputs is None else _state_of(inputs)
    if state is not None:
        stored = _open_stored(kept / f"{_key_of(source)}-{state}", repeat_warnings=True)
        if stored is not None:
            return stored
    with _listening() as warnings:
        manifests = source.manifests()
    for _ in range(2):  # again where what lay there is damaged
        try:
            kept.mkdir(parents=True, exist_ok=True)
            place = _store(manifests, warnings, kept, _key_of(source), state)
            _remove_unused(kept)
        except OSError as error:
            raise UserError(
                f"the manifests cannot be kept in {kept} ({error.strerror}); "
                "choose a folder that you may write to with data.index_root"
            ) from error
        stored = _open_stored(place)
        if stored is not None:
            return stored
    raise UserError(f"{place} was removed while it was made; start again")


def _key_of(source: Source) -> str:
    kind = type(source)
    return _short_hash(f"{FORMAT} {kind.__module__} {source!r}".encode("utf-8", "surrogateescape"))


def _state_of(inputs: Sequence[Path]) -> str:
    known = []
    for path in inputs:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        known.append((os.path.abspath(path), status.st_size, status.st_mtime_ns))
    return _short_hash(json.dumps(known).encode())


def _short_hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


class _Keeper(logging.Handler):
    """Keeps the warnings that it handles, to be logged again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Hears the warnings of sources, which come through the loggers of this package."""
    package, keeper = logging.getLogger("vidtrain.data"), _Keeper()
    package.addHandler(keeper)
    try:
        yield keeper.messages
    finally:
        package.removeHandler(keeper)


def _store(
    manifests: dict[str, Manifest], warnings: Sequence[str], kept: Path, key: str, state: str | None
) -> Path:
    """Writes all splits, or none; returns their folder."""
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=kept))
    try:
        digests = {split: manifest.save(unfinished / split) for split, manifest in manifests.items()}
        place = kept / f"{key}-{state or _short_hash(json.dumps(digests).encode())}"
        about = {"splits": list(manifests), "warnings": list(warnings)}
        (unfinished / SPLITS).write_text(json.dumps(about), encoding="utf-8")
        unfinished.chmod(0o755)  # made for this user alone, but others may share the cache
        try:
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():
                raise
            # another process was faster, and what it stored is the same
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _open_stored(place: Path, repeat_warnings: bool = False) -> dict[str, Manifest] | None:
    """The splits in the folder `place`; None where there is none, or one that is damaged, which is removed."""
    try:
        about = json.loads((place / SPLITS).read_text(encoding="utf-8"))
        manifests = {split: Manifest.open(place / split) for split in about["splits"]}
        warnings = list(about["warnings"]) if repeat_warnings else []
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, UserError) as error:
        logger.warning("%s is damaged (%s) and made anew", place, error)
        shutil.rmtree(place, ignore_errors=True)
        return None
    for message in warnings:
        logger.warning("%s", message)
    with suppress(PermissionError):  # it is another user's, who keeps it for us
        os.utime(place)  # its last use
    return manifests


def _remove_unused(kept: Path) -> None:
    oldest = time.time() - KEEP_DAYS * SECONDS_A_DAY
    for place in kept.iterdir():
        ours = (place / SPLITS).is_file() or place.name.startswith(UNFINISHED)
        with suppress(FileNotFoundError):  # another process has given it its final name meanwhile
            if ours and place.stat().st_mtime < oldest:
                shutil.rmtree(place, ignore_errors=True)
