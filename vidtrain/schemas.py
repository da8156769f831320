"""The typed configuration of every program. Untyped nodes are components, checked by vidtrain.config.check_targets."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from vidtrain.training.settings import PhaseSettings, TrainerSettings


@dataclass
class ClipSettings:
    """What the model gets to see of a video. The stride is given by exactly one of three."""

    frames: int = 16
    frame_step: int | None = None  # frames from one to the next
    fps: float | None = None  # frames per second of the clip
    duration: float | None = None  # seconds that the clip covers
    size: Any = 224  # pixels: one number, or [height, width]
    interpolation: str = "bicubic"  # or bilinear, a little faster and softer
    train_clips: int = 1
    train_copies: int = 1  # differently augmented copies of each training video, from one decoding of it
    eval_clips: int = 1
    sampling: str = "dense"  # dense; uniform: over the whole video, without a stride; reference: V-JEPA 2's
    overlap: bool = True  # whether clips of one video may share frames
    short: str = "repeat_last"  # videos shorter than a clip: repeat_last, wrap, error
    frame_order: str = "forward"  # probes of what time is worth: reversed, shuffled, single_frame
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # ImageNet's
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class DataSettings:
    """How a dataset is read, whatever it is."""

    index_root: str = "${data_root}/index"  # what is known of the files and listings, kept for all runs
    features_root: str = "outputs/features"  # where phases with cache_features keep the encoder's tokens
    prepared: str | None = None  # read the copy that vidtrain.prepare made under this name
    # training videos to leave out: null keeps them
    min_frames: int | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    max_bytes: int | None = None
    time_limit: float = 60.0  # seconds that reading one video may take in a worker
    balance: float = 0.0  # how evenly training draws classes: 0 as the videos are, 1 all alike


@dataclass
class ExportSettings:
    """What a trained model is written as, for other programs to use (vidtrain.export)."""

    formats: list[str] | None = None  # of onnx, torch_export, safetensors; null: none
    input: str = "uint8"  # clips as graphs take them: uint8, and they normalize; float32, normalized already
    precision: str = "fp32"  # of the weights, and of what is computed with them: fp32, bf16, fp16
    opset: int = 18  # ONNX operator set
    max_difference: float | None = None  # to PyTorch, of the largest logit; null: 1e-3, bf16 1e-1, fp16 2e-2
    card: bool = False  # a model card in Markdown, of a run


@dataclass
class RunConfig:
    """The training app's configuration. Untyped nodes are components, checked by `check_targets`."""

    name: str = MISSING
    seed: int = 0
    run_dir: str | None = None
    data_root: str = "data"
    init_from: str | None = None
    pretrained: Any = (
        None  # published weights: file, folder, hub name, timm:NAME, torchvision's name; or several
    )
    pretrained_revision: str | None = None  # of a hub name: branch, tag or commit
    init_match: float = 0.9  # the least share of the encoder's tensors that must match
    clip: ClipSettings = field(default_factory=ClipSettings)
    data: DataSettings = field(default_factory=DataSettings)
    dataset: Any = MISSING
    augmentation: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    stage: dict[str, PhaseSettings] = MISSING
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: Any = MISSING
    export: ExportSettings = field(default_factory=ExportSettings)  # of the best checkpoint, at the end


@dataclass
class BenchmarkConfig(RunConfig):
    """The benchmarking program's configuration: that of a run, and how it is measured."""

    steps: int = 50  # optimizer steps that are timed
    warmup: int = 5  # steps before them that are not
    phase: str | None = None  # the phase of the stage; null: the first
    compile_trial: bool | None = None  # try torch.compile, which may take minutes; null: on a GPU
    peak_tflops: float | None = None  # of the device, for its utilization; null: as its name tells
    prove: bool = False  # follow the first advice that can be followed, and measure before and after
    rounds: int = 3  # of before and after, in turn
    out: str | None = None  # folder for benchmark.json; null: outputs/benchmark/NAME/TIME


@dataclass
class EvaluateConfig:
    """The evaluation program's configuration; null means as the checkpoint was trained."""

    checkpoint: str = MISSING
    split: str = "test"
    out: str | None = None  # folder for the tables; null: beside the checkpoint's folder
    data_root: str | None = None
    prepared: str | None = None  # the name of a prepared copy to read
    eval_clips: int | None = None
    crops: int | None = None
    fusion: str | None = None
    frame_order: str | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    precision: str | None = None
    device: str = "auto"
    dataset: Any = None
    trust_targets: bool = False  # build parts of other packages that the checkpoint names


@dataclass
class PublishedClipSettings:
    """Clips for published weights; what is null is as they were published, where their name tells that."""

    frames: int | None = None
    frame_step: int | None = None  # frames from one to the next; or fps, or duration
    fps: float | None = None
    duration: float | None = None
    sampling: str | None = None  # uniform needs no stride
    size: Any = None  # pixels: one number, or [height, width]
    short_side: int | None = None  # pixels that the frame is scaled to before its center is cut out
    interpolation: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class ExportConfig(ExportSettings):
    """The exporting program's configuration: of a run or a checkpoint, or of published weights."""

    checkpoint: str | None = None  # a run's folder, or a checkpoint
    pretrained: Any = None  # or published weights, as for training
    pretrained_revision: str | None = None  # of a hub name: branch, tag or commit
    init_match: float = 0.9  # the least share of the encoder's tensors that must match
    classes: Any = None  # names for published weights: a list, or a file with one a line; null: as published
    model: Any = None  # for published weights
    clip: PublishedClipSettings = field(default_factory=PublishedClipSettings)  # for published weights
    out: str | None = None  # folder; null: export/ in the run's, or outputs/export/NAME
    formats: list[str] | None = field(default_factory=lambda: ["onnx", "torch_export", "safetensors"])
    card: bool | None = None  # null: where there is a run
    trust_targets: bool = False  # build parts of other packages that the checkpoint names


@dataclass
class IndexSettings:
    index_root: str = (
        "${data_root}/index"  # as in training: what is found of files and listings is kept there
    )


@dataclass
class AuditConfig:
    """The audit program's configuration. For a bound, null means that there is none."""

    dataset: Any = None
    data_root: str = "data"
    out: str | None = None  # folder for the page and the ledger; null: outputs/audit/NAME
    num_workers: int | None = None  # processes that read; null: one a core
    time_limit: float = 60.0  # seconds that reading one file may take
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
    time_limit: float = 3600.0  # seconds that one file may take
    max_unreadable_share: float | None = 0.02  # as training takes by default; null: any
    data: IndexSettings = field(default_factory=IndexSettings)


@dataclass
class SplitListingSettings:
    """How to read a listing; what is null is recognized (vidtrain.data.sources.listings.ListingFormat)."""

    root: str | None = None  # what paths are relative to; null: the listing's folder
    delimiter: str | None = None  # comma, tab, space, semicolon or "::"
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


@dataclass
class CompareConfig:
    """The comparing program's configuration."""

    runs: Any = None  # run folders, folders of them such as a sweep, or patterns: one, or a list
    metric: str | None = None  # null: top1, or exact_match where videos have several labels
    split: str | None = None  # the folder below eval/; null: what each run closed with
    baseline: str | None = None  # a run of the recipe that others are held against; null: the first
    repeats: list[str] = field(default_factory=lambda: ["seed"])  # settings that do not make another recipe
    across_protocols: bool = False  # compare runs that were evaluated in different ways too
    bootstrap: int = 10000  # draws
    confidence: float = 0.95  # of the intervals
    seed: int = 0  # of the draws
    out: str | None = None  # folder for the page, tables and pictures; null: outputs/compare/TIME
