"""A source of videos without labels, for pretraining; finds the videos named on a command line."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass

from vidtrain.data.decoding.metadata import IMAGE_SUFFIXES, check_frame_rate, image_names
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import check_splits, groups_by, hold_out
from vidtrain.data.sources.folders import SUFFIXES, folder_levels, walk
from vidtrain.data.sources.tables import numbered_lines, read_table
from vidtrain.data.stores.objects import objects_at
from vidtrain.data.stores.places import check_no_secret, is_url, joined, member_of
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown, shown_some

UNLABELED = "unlabeled"  # the class of all videos, which objectives without labels ignore
LISTINGS = (".txt", ".csv")


@dataclass(frozen=True)
class Unlabeled:
    """All videos that `path` names, found by `find_videos`.

    A share `val_share` of them, drawn from `seed`, is held out for the val loss; with `group_pattern` (`group_in`, on
    paths) groups are not split. With null nothing is held out, and that loss is computed on training videos. With
    `frame_rate` (images a second) videos are folders of images.

    Raises `UserError` for invalid shares and patterns; `manifests` raises it for places without videos.
    """

    path: str | Sequence[str]
    val_share: float | None = 0.05
    group_pattern: str | None = None
    frame_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise UserError(f"dataset.source.val_share={self.val_share}: must lie between 0 and 1; or null")
        groups_by(self.group_pattern, [])
        if self.frame_rate is not None:
            check_frame_rate(self.frame_rate)

    def manifests(self) -> dict[str, Manifest]:
        places = [self.path] if isinstance(self.path, str) else list(self.path)
        videos, faults = find_videos(places, self.frame_rate)
        if faults or not videos:
            raise UserError("dataset.source.path: " + ("\n  ".join(faults) or "names nothing"))
        builder = ColumnsBuilder()
        builder.extend(videos, [0] * len(videos), groups_by(self.group_pattern, videos))
        manifests = {"train": Manifest(builder.build(), (UNLABELED,), self.frame_rate)}
        if self.val_share is not None:
            manifests = hold_out(manifests, self.val_share, self.seed)
            check_splits(manifests)
        return manifests


def find_videos(places: Sequence[str], frame_rate: float | None = None) -> tuple[list[str], list[str]]:
    """The videos that `places` name, without duplicates, in order and sorted within a place; and the faults of places.

    A place is a file, a folder (all videos below it), a pattern (`**` for any folders), or a listing: a .txt file with
    a path a line, or a .csv file with a column `path`; paths there are relative to its folder. Each may be a URL. A
    file that is named or listed itself may have any suffix. With a `frame_rate`, a video is a folder of images, and
    folders and patterns name all such folders in them.
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
    if is_url(place):
        return _videos_at(place, folders)
    if os.path.isdir(place):
        videos = _below(place, folders)
        if not videos:
            what, suffixes = ("folders of images", IMAGE_SUFFIXES) if folders else ("videos", SUFFIXES)
            raise UserError(f"{shown(place)}: there are no {what} in this folder, of {shown_some(suffixes, 4)}")
        return videos
    if os.path.splitext(place)[1].lower() in LISTINGS and os.path.isfile(place):
        return _listed(place)
    if os.path.exists(place):
        if folders:
            raise UserError(f"{shown(place)} is a file; with frame_rate, videos are folders of images")
        return [place]
    if not glob.has_magic(place):
        raise UserError(f"{shown(place)}: there is no such file or folder")
    matches = sorted(glob.glob(place, recursive=True))
    if not matches:
        raise UserError(f"{shown(place)}: nothing matches this pattern")
    videos = [] if folders else [match for match in matches if match.lower().endswith(SUFFIXES)]
    # ** matches folders and their files, so the files would come twice
    if folders or "**" not in place:
        videos += [video for match in matches if os.path.isdir(match) for video in _below(match, folders)]
    if not videos:
        raise UserError(f"{shown(place)}: none of the {len(matches)} matches is a video")
    return videos


def _videos_at(url: str, folders: bool) -> list[str]:
    check_no_secret(url)
    if folders:
        raise UserError(f"{shown(url)}: folders of images are read from disk only; make videos of them first")
    if url.lower().endswith(LISTINGS):
        return _listed(url)
    if member_of(url) or url.lower().endswith(SUFFIXES):
        return [url]
    try:
        videos = [name for name in objects_at(url) if name.lower().endswith(SUFFIXES)]
    except OSError as error:
        raise UserError(f"{shown(url)}: {error.strerror}") from error
    if not videos:
        raise UserError(f"{shown(url)}: the store lists no videos there; give it a listing of their URLs")
    return sorted(videos)


def _below(folder: str, folders: bool) -> list[str]:
    if folders:
        return sorted(parent for parent, _ in folder_levels(folder) if image_names(parent))
    return sorted(walk(folder, SUFFIXES))


def _listed(path: str) -> list[str]:
    if path.lower().endswith(".txt"):
        names = [line.strip() for _, line in numbered_lines(path)]
    else:
        names = [fields["path"] for _, fields in read_table(path, ",", ("path",)) if fields["path"]]
    if not names:
        raise UserError(f"{path} lists no videos")
    videos = [joined(os.path.dirname(path), name) for name in names]
    for video in videos:
        check_no_secret(video, path)
    return videos
