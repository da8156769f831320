"""The typed configuration of the programs for datasets: audit, prepare, split."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class IndexSettings:
    index_root: str = (
        "${data_root}/index"  # as in training: what is found of files and listings is kept there
    )
    max_pixels: int = 36_000_000  # as in training: a file with larger pictures is not decoded
    size_changes: str = (
        "scale"  # as in training: frames of another size than the first are scaled to it, or refused
    )


@dataclass
class AuditConfig:
    """The audit program's configuration. For a bound, null means that there is none."""

    dataset: Any = None
    data_root: str = "data"
    out: str | None = None  # folder for the page and the ledger; null: outputs/audit/NAME
    num_workers: int | None = None  # processes that read; null: one a core
    decode_timeout_s: float = 60.0  # seconds without progress in reading one file
    retry: bool = False  # read again what could not be read before
    group_pattern: str | None = None  # regular expression that finds a video's group in its path
    max_distance: float = (
        6.5  # bits of 64 by which frames of near duplicates may differ: vidtrain.data.audit.duplicates
    )
    max_unreadable_share: float | None = 0.0  # of the files
    max_damaged_share: float | None = None  # truncated or damaged, of the files
    max_absent_classes: int | None = None  # classes without a readable video in some split
    max_duplicates_across_splits: int | None = 0  # sets of alike files
    max_groups_across_splits: int | None = 0
    max_shortcut_gain: float | None = None  # accuracy that an attribute of the files gives above chance
    data: IndexSettings = field(default_factory=IndexSettings)


@dataclass
class PrepareConfig:
    """The preparing program's configuration."""

    dataset: Any = None
    data_root: str = "data"  # the copy lies in data_root/prepared/DATASET/NAME
    name: str | None = None  # of the copy; null: made from the settings, such as short256_gop12
    short_side: int = 256  # pixels; smaller videos keep their size
    gop: int = 12  # frames from one clean start to the next
    b_frames: int = 3  # pictures in a row that nothing refers to, so that they can be passed over
    crf: int = 20  # x264's constant quality: 0 is the best, 51 the worst
    preset: str = "medium"  # x264's effort, from ultrafast to placebo
    num_workers: int | None = None  # processes that encode, one thread each; null: one a core
    decode_timeout_s: float = 120.0  # seconds without progress in reading or encoding one file
    max_unreadable_share: float | None = 0.02  # as training takes by default; null: any
    data: IndexSettings = field(default_factory=IndexSettings)


@dataclass
class SplitListingSettings:
    """How to read a listing; what is null is recognized (vidtrain.data.sources.listing_format.ListingFormat)."""

    root: str | None = None  # what paths are relative to; null: the listing's folder
    delimiter: str | None = None  # comma, tab, space, semicolon, "::" or last_space
    header: bool | None = None  # whether line 1 names the columns
    path_column: int | str | None = None
    label_column: int | str | None = None
    start_column: int | str | None = None
    end_column: int | str | None = None
    label_separator: str | None = None
    label_kind: str | None = None  # names, integers
    frame_rate: float | None = None  # paths are folders of images, that many a second


@dataclass
class SplitConfig:
    """The splitting program's configuration."""

    source: str = "class_folders"  # class_folders, listing, frame_folders
    path: str | None = None  # the folder of the class folders or frame folders, or the listing
    ground_truth: str | None = None  # for frame folders: CSV of youtube_id, folder_name, label
    frame_rate: float = 25.0  # of frame folders: images a second, for the command to train with
    out: str | None = None  # folder for train.csv, val.csv, test.csv and annotations.json
    shares: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # of train, val and test
    seed: int = 0
    group_column: int | str | None = None  # of the listing; null: the column named group, if there is one
    group_pattern: str | None = None  # regular expression that finds a video's group in its path
    classes: Any = None  # a list, or a file of class names in order; null: those of the videos, sorted
    listing: SplitListingSettings = field(default_factory=SplitListingSettings)
    paths: str = "absolute"  # in the CSV files; relative: to out
    overwrite: bool = False  # what another split left in out
