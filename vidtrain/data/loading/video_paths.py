"""Which videos are meant by files, folders, patterns and listings."""

import csv
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vidtrain.data.decoding.metadata import IMAGE_SUFFIXES, image_names
from vidtrain.data.sources.folders import SUFFIXES, leads_back, walk
from vidtrain.data.sources.tables import open_text
from vidtrain.errors import UserError
from vidtrain.files.escaping import plain_cell, shown

LISTINGS = (".txt", ".csv")
PATTERN = "*?["


def find_videos(places: Sequence[str], frame_rate: float | None = None) -> tuple[list[str], list[str]]:
    """The videos that `places` name, each once, in the order of the places and sorted within each; and what is wrong
    with places, in words.

    A place is a file, a folder (all videos below it), a pattern (`**` for any folders), or a listing: a .txt file
    with a path a line, or a .csv file with a column `path`. Paths in a listing are relative to its folder. A file that
    is named or listed itself is taken whatever its suffix. With a `frame_rate`, a video is a folder that holds
    images, and folders and patterns stand for those in them.
    """
    videos: dict[str, None] = {}
    faults = []
    for place in places:
        try:
            videos |= dict.fromkeys(_videos_of(place, frame_rate is not None))
        except UserError as error:
            faults.append(str(error))
    return list(videos), faults


def _videos_of(place: str, folders: bool) -> list[str]:
    if os.path.isdir(place):
        videos = _below(place, folders)
        if not videos:
            what, suffixes = ("folders of images", IMAGE_SUFFIXES) if folders else ("videos", SUFFIXES)
            raise UserError(
                f"{shown(place)}: there are no {what} in this folder; looked for {' '.join(suffixes)}"
            )
        return videos
    if os.path.splitext(place)[1].lower() in LISTINGS and os.path.isfile(place):
        return _listed(Path(place))
    if os.path.exists(place):
        if folders:
            raise UserError(f"{shown(place)} is a file; with frame_rate, videos are folders of images")
        return [place]
    if not any(character in place for character in PATTERN):
        raise UserError(f"{shown(place)}: there is no such file or folder")
    matches = sorted(glob.glob(place, recursive=True))
    if not matches:
        raise UserError(f"{shown(place)}: nothing matches this pattern")
    videos = [] if folders else [match for match in matches if match.lower().endswith(SUFFIXES)]
    if (
        folders or "**" not in place
    ):  # ** names folders beside the files in them, which then are those files again
        videos += [video for match in matches if os.path.isdir(match) for video in _below(match, folders)]
    if not videos:
        raise UserError(f"{shown(place)}: none of the {len(matches)} matches is a video")
    return videos


def _below(folder: str, folders: bool) -> list[str]:
    return sorted(_image_folders(folder) if folders else walk(Path(folder), SUFFIXES))


def _image_folders(folder: str) -> Iterator[str]:
    for parent, below, _ in os.walk(folder, followlinks=True):
        below[:] = [
            name for name in below if not (name.startswith(".") or leads_back(os.path.join(parent, name)))
        ]
        if image_names(parent):
            yield parent


def _listed(path: Path) -> list[str]:
    with open_text(path, keep_line_ends=True) as file:
        if path.suffix.lower() == ".txt":
            lines = [line.strip() for line in file if line.strip()]
        else:
            rows = csv.DictReader(file)  # of anyone, or of `vidtrain.files.escaping.csv_lines`
            if "path" not in (rows.fieldnames or ()):
                raise UserError(f"{path}: line 1 must name the columns, one of them path")
            lines = [plain_cell(row["path"]) for row in rows if row["path"]]
    if not lines:
        raise UserError(f"{path} lists no videos")
    return [os.path.join(path.parent, line) for line in lines]
