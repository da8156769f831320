"""The typed configuration of programs that inspect or make datasets: audit, baselines, labels, prepare, split."""

from dataclasses import dataclass, field
from typing import Any

from vidtrain.config.schemas import IndexSettings
from vidtrain.training.run import a_size, above, at_least, one_of, setting, share

NETWORKS = one_of("random", "imagenet")
BOUND = at_least(0, advice=", or null for no bound")


@dataclass
class AuditConfig:
    """The audit program's configuration. The audit fails if a max_... bound is exceeded; null means no bound."""

    dataset: Any = None
    data_root: str = "data"
    out: str | None = None  # folder for the page and the ledger; null: outputs/audit/NAME
    num_workers: int | None = setting(None, at_least(1))  # reading processes; null: one per core
    decode_timeout_s: float = setting(60.0, above(0, " seconds"))  # seconds without progress in reading one file
    retry: bool = False  # read the files again that could not be read before
    group_pattern: str | None = None  # regular expression that finds a video's group in its path
    # most bits of 64 in which near duplicates differ on average (see vidtrain.data.audit.duplicates)
    max_distance: float = setting(6.5, at_least(0))
    max_unreadable_share: float | None = setting(0.0, BOUND)  # share of the files
    max_damaged_share: float | None = setting(None, BOUND)  # share of files that are truncated or damaged
    max_absent_classes: int | None = setting(None, BOUND)  # classes without a readable video in some split
    # sets of duplicates with videos in several splits
    max_duplicates_across_splits: int | None = setting(0, BOUND)
    max_groups_across_splits: int | None = setting(0, BOUND)  # groups with videos in several splits
    # accuracy above chance at which an attribute of the files, such as their size, predicts the class
    max_shortcut_gain: float | None = setting(None, BOUND)
    data: IndexSettings = field(default_factory=IndexSettings)


@dataclass
class PreparedIndexSettings(IndexSettings):
    prepared: str | None = None  # the name of a prepared copy to read


@dataclass
class BaselinesConfig:
    """The baselines program's configuration."""

    dataset: Any = None
    data_root: str = "data"
    # weights of the image network that classifies single frames: random, imagenet (skipped unless installed)
    networks: list[str] = field(default_factory=lambda: list(NETWORKS["choices"]()), metadata=NETWORKS)
    clips: int = setting(8, at_least(1))  # clips per video, evenly spread
    frames: int = setting(4, at_least(1))  # frames per clip
    fps: float = setting(8.0, above(0, " frames a second"))
    size: int = setting(128, at_least(32, " pixels"))  # frames are resized to squares with this side
    # at most this many videos, evenly spread over the split; null: all
    max_train_videos: int | None = setting(2000, at_least(1))
    max_eval_videos: int | None = setting(1000, at_least(1))
    num_workers: int | None = setting(None, at_least(1))  # decoding processes; null: one per core
    decode_timeout_s: float = setting(60.0, above(0, " seconds"))  # seconds without progress in reading one video
    anew: bool = False  # compute even if results for the same videos and settings exist
    data: PreparedIndexSettings = field(default_factory=PreparedIndexSettings)


@dataclass
class LabelsConfig:
    """The configuration of the labels program, which finds wrong labels and chooses videos to label."""

    # errors: list labels that are probably wrong; next: choose videos to label next. May be written without action=
    action: str | None = setting(None, one_of("errors", "next"))
    embeddings: str | None = None  # embeddings of labeled videos; may be written without embeddings=
    split: str = "train"  # split of these embeddings
    folds: int = setting(5, at_least(2))  # folds of cross-validation, which do not divide groups
    # errors: the score that ranks suspects
    rank_by: str = setting("self_confidence", one_of("self_confidence", "normalized_margin"))
    shown: int = setting(120, at_least(1))  # suspects on the page; suspects.csv lists all
    pool: str | None = None  # next: embeddings of the videos to choose from
    strategy: str = setting("margin", one_of("margin", "entropy", "k_center", "random"))
    count: int = setting(50, at_least(1))  # videos to label
    seed: int = setting(0, at_least(0))  # seed of strategy=random
    out: str | None = None  # folder; null: label_errors/ or label_next/ beside the embeddings


@dataclass
class PrepareConfig:
    """The preparing program's configuration."""

    dataset: Any = None
    data_root: str = "data"  # the copy is in data_root/prepared/DATASET/NAME
    name: str | None = None  # name of the copy; null: from the settings, such as short256_gop12
    short_side: int = 256  # pixels; smaller videos keep their size
    gop: int = 12  # frames from one keyframe to the next
    b_frames: int = 3  # consecutive B-frames; no other frame refers to them, so decoding can skip them
    crf: int = 20  # x264's constant quality: 0 is the best, 51 the worst
    preset: str = "medium"  # x264's effort, from ultrafast to placebo
    # encoding processes of one thread; null: one per core
    num_workers: int | None = setting(None, at_least(1))
    # seconds without progress in reading or encoding one file
    decode_timeout_s: float = setting(120.0, above(0, " seconds"))
    max_unreadable_share: float | None = setting(0.02, share(", or be null"))  # share of the files; null: no bound
    # pack the videos unchanged into tar files of about this size, such as 1GiB, instead of encoding them again
    shards: str | None = setting(None, a_size())
    out: str | None = None  # the folder of the tar files
    prepared: str | None = None  # pack the videos of the prepared copy with this name
    data: IndexSettings = field(default_factory=IndexSettings)


@dataclass
class SplitListingSettings:
    """How to read a listing; null means detected (see vidtrain.data.sources.listing_format.ListingFormat)."""

    root: str | None = None  # folder to which paths are relative; null: the listing's folder
    delimiter: str | None = None  # comma, tab, space, semicolon, "::" or last_space
    header: bool | None = None  # whether line 1 names the columns
    path_column: int | str | None = None
    label_column: int | str | None = None
    start_column: int | str | None = None
    end_column: int | str | None = None
    label_separator: str | None = None
    label_kind: str | None = None  # names, integers
    frame_rate: float | None = None  # images per second, if paths are folders of images


@dataclass
class SplitConfig:
    """The splitting program's configuration."""

    source: str = setting("class_folders", one_of("class_folders", "listing", "frame_folders"))
    path: str | None = None  # the folder of the class folders or frame folders, or the listing
    ground_truth: str | None = None  # for frame folders: CSV of youtube_id, folder_name, label
    # images per second of frame folders, for the training command that the program prints
    frame_rate: float = setting(25.0, above(0, " images a second"))
    out: str | None = None  # folder for train.csv, val.csv, test.csv and annotations.json
    shares: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # shares of train, val and test
    seed: int = setting(0, at_least(0))
    group_column: int | str | None = None  # the listing's column of groups; null: the one named group, if any
    group_pattern: str | None = None  # regular expression that finds a video's group in its path
    classes: Any = None  # a list, or a file of class names in order; null: the classes of the videos, sorted
    listing: SplitListingSettings = field(default_factory=SplitListingSettings)
    paths: str = setting("absolute", one_of("absolute", "relative"))  # paths in the CSV files; relative: to out
    overwrite: bool = False  # replace the files of another split in out
