"""Videos without labels, as pretraining takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from vidtrain.data.decoding.metadata import check_frame_rate
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import check_splits, groups_by, hold_out
from vidtrain.data.sources.folders import find_videos
from vidtrain.errors import UserError

UNLABELED = "unlabeled"  # the one class of all videos, which no objective without labels looks at


@dataclass(frozen=True)
class Unlabeled:
    """All videos that `path` names: files, folders, patterns or listings, as `find_videos` takes them.

    A share `val_share` of them is held out for the loss on val, drawn from `seed`; with `group_pattern`
    (`splitting.group_in`, on paths) groups stay whole. With null nothing is held out, and the loss is followed on some
    of the videos that are trained on. With `frame_rate` videos are folders of images, that many a second.

    Raises `UserError` for shares and patterns that are none, and `manifests` for places that name no videos.
    """

    path: str | Sequence[str]
    val_share: float | None = 0.05
    group_pattern: str | None = None
    frame_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise UserError(
                f"dataset.source.val_share={self.val_share}: must lie between 0 and 1, or be null"
            )
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
