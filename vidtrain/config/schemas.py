"""The typed configuration of the programs: every setting, its default, and what it may be.

Untyped nodes are components, checked by vidtrain.config.targets.check_targets; `check_settings` checks the others.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, SI

from vidtrain.training.run import (
    PhaseSettings,
    TrainerSettings,
    a_metric,
    a_size,
    above,
    at_least,
    between,
    one_of,
    setting,
    share,
)

FRAME_ORDERS = one_of("forward", "reversed", "shuffled", "single_frame")
FUSIONS = one_of("mean_logits", "mean_probs", "joint", "vote")
PRECISIONS = one_of("fp32", "bf16", "fp16")
SHORT_POLICIES = one_of("repeat_last", "wrap", "error")
SIZE_CHANGES = one_of("scale", "refuse")
FORMATS = one_of("onnx", "torch_export", "safetensors")
PRETRAINING_FORMATS = one_of("original", "transformers")  # of what such a run trained
ODD = {"allows": lambda value: value > 0 and value % 2, "must": "must be an odd number: 1, 3, 5 ..."}
NETWORKS = one_of("random", "imagenet")
BOUND = at_least(0, rest=", or null for no bound")


# --- the settings -----------------------------------------------------------------------------------------


@dataclass
class ClipSettings:
    """What the model gets to see of a video. The stride is given by one of three.

    `${of_model:KEY,DEFAULT}` is as the chosen model was published, and the default for a model that was not.
    """

    frames: int = SI("${of_model:frames,8}")
    frame_step: int | None = SI("${of_model:frame_step,3}")  # frames from one to the next
    fps: float | None = SI("${of_model:fps,null}")  # or frames per second of the clip
    duration: float | None = None  # or seconds that the clip covers
    size: Any = SI("${of_model:size,32}")  # pixels: one number, or [height, width]
    # bilinear is a little faster and softer
    interpolation: str = setting(SI("${of_model:interpolation,bicubic}"), one_of("bicubic", "bilinear"))
    # pixels that are not square: as if they were; apply: as players show them
    sample_aspect: str = setting("ignore", one_of("ignore", "apply"))
    train_clips: int = setting(1, at_least(1))
    # differently augmented copies of each training video, from one decoding of it
    repeated_augmentation: int = setting(1, at_least(1))
    eval_clips: int = setting(1, at_least(1))
    # dense; uniform: over the whole video, without a stride; vjepa2: its indices; vjepa2_random: in evaluation too its
    # windows are drawn, as its published evaluations do; pyslowfast: its indices; pyslowfast_offset: those for MViT
    sampling: str = "dense"
    overlap: bool = True  # whether clips of one video may share frames
    short_video_policy: str = "repeat_last"  # videos shorter than a clip: repeat_last, wrap, error
    frame_order: str = "forward"  # probes of what time is worth: reversed, shuffled, single_frame
    mean: list[float] = SI("${of_model:mean,[0.485,0.456,0.406]}")  # of ImageNet
    std: list[float] = SI("${of_model:std,[0.229,0.224,0.225]}")


@dataclass
class IndexSettings:
    """What is known of the files of a dataset, and which of them are not decoded."""

    index_root: str = "${data_root}/index"  # what is known of the files and listings, kept for all runs
    # of one picture; a file with larger ones is not decoded: 8192x4320 is just allowed
    max_pixels: int = setting(36_000_000, at_least(1))
    # frames of another size than the first: scale (to it, as players do), refuse
    size_changes: str = setting("scale", SIZE_CHANGES)


@dataclass
class DataSettings(IndexSettings):
    """How a dataset is read, whatever it is."""

    features_root: str = "outputs/features"  # where phases with cache_features keep the encoder's tokens
    prepared: str | None = None  # read the copy that vidtrain.prepare made under this name
    # training videos to leave out: null keeps them
    min_frames: int | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    max_bytes: int | None = None
    # without progress in reading one video, after which its worker is ended
    decode_timeout_s: float = setting(60.0, above(0, " seconds"))
    allow_changed: bool = False  # resume though training data or labels differ from when the run was started
    # how evenly training draws classes: 0 as the videos are, 1 all alike
    class_balanced_sampling: float = setting(0.0, share())


@dataclass
class ExportSettings:
    """What a trained model is written as, for other programs to use (vidtrain.export)."""

    formats: list[str] | None = setting(None, FORMATS)  # null: none
    # clips as graphs take them: uint8, and they normalize; float32, normalized already
    input: str = setting("uint8", one_of("uint8", "float32"))
    precision: str = setting("fp32", PRECISIONS)  # of the weights, and of what is computed with them
    opset: int = 18  # ONNX operator set
    # to PyTorch, of the largest logit; null: 1e-3, bf16 1e-1, fp16 2e-2
    max_difference: float | None = setting(None, above(0))
    card: bool | None = False  # a model card in Markdown, of a run


@dataclass
class ProbeSettings:
    """What simple classifiers on the features of pretraining are measured on, at every evaluation."""

    dataset: Any = None  # a labeled one: dataset@probe.dataset=OPTION; null: there are no probes
    # spread over each split; null: all
    max_videos: int | None = setting(1000, at_least(2))


@dataclass
class RunConfig:
    """The training app's configuration. Untyped nodes are components, checked by `check_targets`."""

    name: str = MISSING
    seed: int = setting(0, at_least(0))
    run_dir: str | None = None
    data_root: str = "data"
    init_from: str | None = None
    # of a run of pretraining that is started from: null is its teacher, where it has one
    init_part: str | None = setting(None, one_of("encoder", "teacher"))
    # published weights: file (FILE:2 for number 2 of its probes), folder, hub name, {timm,package}:NAME, torchvision's
    # name; or several
    pretrained: Any = None
    pretrained_revision: str | None = None  # of a hub name: branch, tag or commit
    # the least share of the encoder's tensors that must match; 1: no tensor is missing, unexpected or of another shape
    init_match: float = setting(1.0, share())
    clip: ClipSettings = field(default_factory=ClipSettings)
    data: DataSettings = field(default_factory=DataSettings)
    # a chance to be mirrored, unless it says another
    dataset: Any = field(default_factory=lambda: {"flip": 0.5})
    augmentation: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    stage: dict[str, PhaseSettings] = MISSING
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: Any = MISSING
    objective: Any = None  # what is trained on in place of labels; null: labels, by the loss
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    export: ExportSettings = field(default_factory=ExportSettings)  # of the best checkpoint, at the end


@dataclass
class BenchmarkConfig(RunConfig):
    """The benchmarking program's configuration: that of a run, and how it is measured."""

    steps: int = setting(50, at_least(2))  # optimizer steps that are timed
    warmup: int = setting(5, at_least(0))  # steps before them that are not
    phase: str | None = None  # the phase of the stage; null: the first
    compile_trial: bool | None = None  # try torch.compile, which may take minutes; null: on a GPU
    # of the device, for its utilization; null: as its name tells
    peak_tflops: float | None = setting(None, above(0))
    prove: bool = False  # follow the first advice that can be followed, and measure before and after
    rounds: int = setting(3, at_least(1))  # of before and after, in turn
    out: str | None = None  # folder for benchmark.json; null: outputs/benchmark/NAME/TIME


@dataclass
class EvaluateConfig:
    """The evaluation program's configuration; null means as the checkpoint was trained."""

    checkpoint: str | None = None  # a run's folder, a checkpoint, or an exported .onnx or .safetensors
    from_table: str | None = None  # or the folder of an earlier evaluation: no video and no model is opened
    # of a checkpoint that holds both, last.pt: ema is their average
    weights: str | None = setting(None, one_of("raw", "ema"))
    split: str = "test"
    # folder for tables; null: eval/SPLIT_CLIPSxCROPS in the run's, or beside from_table's
    out: str | None = None
    overwrite: bool = False  # the view table of another evaluation that out holds
    allow_changed: bool = False  # evaluate though labels differ from when the run was started
    data_root: str | None = None
    prepared: str | None = None  # the name of a prepared copy to read
    eval_clips: int | None = setting(None, at_least(1))
    crops: int | None = setting(None, at_least(1))
    fusion: str | None = setting(None, FUSIONS)
    frame_order: str | None = setting(None, FRAME_ORDERS)
    # other orders of frames, judged in the same pass
    frame_order_ablations: list[str] = field(default_factory=list, metadata=FRAME_ORDERS)
    short_video_policy: str | None = setting(None, SHORT_POLICIES)  # videos shorter than a clip
    # of one picture; a file with larger ones is not decoded
    max_pixels: int | None = setting(None, at_least(1))
    batch_size: int | None = setting(None, at_least(1))
    num_workers: int | None = setting(None, at_least(0))
    cpu_threads: int | None = setting(None, at_least(1))
    precision: str | None = None
    device: str = "auto"
    dataset: Any = None
    trust_targets: bool = False  # build parts of other packages that the checkpoint names


@dataclass
class WindowSettings:
    """Windows that slide along a video."""

    # seconds from one window to the next; null: videos are judged as a whole
    stride: float | None = setting(None, above(0, " seconds"))
    length: float | None = setting(None, above(0, " seconds"))  # null: what the clips of a window span
    smooth: int = setting(1, ODD)  # windows whose probabilities are averaged before they are labeled
    threshold: float | None = setting(
        None, share()
    )  # the least probability; null: 0, and 0.5 of several labels


@dataclass
class PredictConfig:
    """The predicting program's configuration; null means as the checkpoint was trained."""

    checkpoint: str = MISSING  # a run's folder, a checkpoint, or an exported .onnx or .safetensors
    videos: Any = None  # files, folders, patterns or listings: one, or a list
    frame_rate: float | None = setting(None, above(0))  # videos are folders of images, that many a second
    format: str = setting("table", one_of("table", "json", "csv"))  # of the results on standard output
    topk: int = setting(5, at_least(1))
    # folder, or .csv or .json file; null: outputs/predict/TIME where a folder is needed
    out: str | None = None
    logits: bool = False  # write logits.npz, of every view and of the video
    windows: WindowSettings = field(default_factory=WindowSettings)
    render: bool = False  # a labeled video and a sheet of what the model saw, with where it looked
    # where it looked: attention of an attentive pooler; auto: the first there is
    heat: str = setting("auto", one_of("auto", "attention", "grad_cam", "none"))
    heat_class: str | None = None  # the class that grad_cam is of; null: the most probable one
    eval_clips: int | None = setting(None, at_least(1))  # with windows, null is 1
    crops: int | None = setting(None, at_least(1))
    fusion: str | None = setting(None, one_of("mean_logits", "mean_probs", "joint"))
    batch_size: int | None = setting(None, at_least(1))  # videos, or windows
    # processes that decode; null: as many as there are cores for
    num_workers: int | None = setting(None, at_least(0))
    decode_timeout_s: float | None = setting(None, above(0))  # without progress in reading one video
    # of one picture; a file with larger ones is not decoded
    max_pixels: int | None = setting(None, at_least(1))
    size_changes: str | None = setting(None, SIZE_CHANGES)
    precision: str | None = setting(None, PRECISIONS)
    device: str = "auto"
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
    sample_aspect: str | None = None  # ignore, apply: pixels that are not square
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class ExportConfig(ExportSettings):
    """The exporting program's configuration: of a run or a checkpoint, or of published weights."""

    checkpoint: str | None = None  # a run's folder, or a checkpoint
    pretrained: Any = None  # or published weights, as for training
    pretrained_revision: str | None = None  # of a hub name: branch, tag or commit
    # the least share of the encoder's tensors that must match; 1: no tensor is missing, unexpected or of another shape
    init_match: float = setting(1.0, share())
    classes: Any = None  # names for published weights: a list, or a file with one a line; null: as published
    model: Any = None  # for published weights
    clip: PublishedClipSettings = field(default_factory=PublishedClipSettings)  # for published weights
    out: str | None = None  # folder; null: export/ in the run's, or outputs/export/NAME
    # null: onnx, torch_export and safetensors; of a run of pretraining original and transformers
    formats: list[str] | None = setting(
        None, one_of(*FORMATS["choices"](), *PRETRAINING_FORMATS["choices"]())
    )
    card: bool | None = None  # null: where there is a run
    trust_targets: bool = False  # build parts of other packages that the checkpoint names


@dataclass
class CompareConfig:
    """The comparing program's configuration."""

    # run folders, folders of them such as a sweep, or patterns: one, or a list; of a single run its page is made again
    runs: Any = None
    # null: top1, or exact_match where videos have several labels
    metric: str | None = setting(None, a_metric())
    split: str | None = None  # the folder below eval/; null: what each run closed with
    baseline: str | None = None  # a run of the recipe that others are compared with; null: the first
    repeats: list[str] = field(default_factory=lambda: ["seed"])  # settings that do not make another recipe
    across_protocols: bool = False  # compare runs that were evaluated in different ways too
    bootstrap: int = setting(10000, at_least(100, " draws"))
    confidence: float = setting(0.95, between(0, 1, ", such as 0.95"))  # of the intervals
    seed: int = setting(0, at_least(0))  # of the draws
    out: str | None = (
        None  # folder for the page, tables and pictures; null: outputs/compare/TIME, or the single run
    )


@dataclass
class SweepConfig:
    """The configuration of the program that looks at sweeps."""

    action: str | None = setting(None, one_of("status", "resume"))  # may be written without action=
    folder: str | None = None  # of the sweep; may be written without folder=
    watch: bool = False  # draw the table again and again on a terminal, until all trials have ended
    interval: float = setting(2.0, at_least(0.2, " seconds"))  # between two drawings
    retry: bool = False  # resume: run those again that failed, diverged or ran out of memory


# --- audit, prepare, split ---


@dataclass
class AuditConfig:
    """The audit program's configuration. For a bound, null means that there is none."""

    dataset: Any = None
    data_root: str = "data"
    out: str | None = None  # folder for the page and the ledger; null: outputs/audit/NAME
    num_workers: int | None = setting(None, at_least(1))  # processes that read; null: one a core
    decode_timeout_s: float = setting(60.0, above(0, " seconds"))  # without progress in reading one file
    retry: bool = False  # read again what could not be read before
    group_pattern: str | None = None  # regular expression that finds a video's group in its path
    # bits of 64 by which frames of near duplicates may differ: vidtrain.data.audit.duplicates
    max_distance: float = setting(6.5, at_least(0))
    max_unreadable_share: float | None = setting(0.0, BOUND)  # of the files
    max_damaged_share: float | None = setting(None, BOUND)  # truncated or damaged, of the files
    max_absent_classes: int | None = setting(None, BOUND)  # classes without a readable video in some split
    max_duplicates_across_splits: int | None = setting(0, BOUND)  # sets of alike files
    max_groups_across_splits: int | None = setting(0, BOUND)
    # accuracy that an attribute of the files gives above chance
    max_shortcut_gain: float | None = setting(None, BOUND)
    data: IndexSettings = field(default_factory=IndexSettings)


@dataclass
class PreparedIndexSettings(IndexSettings):
    prepared: str | None = None  # read a copy that vidtrain.prepare made, by its name


@dataclass
class BaselinesConfig:
    """The baselines program's configuration."""

    dataset: Any = None
    data_root: str = "data"
    # image networks, frame by frame: random, imagenet (left out with a word where no weights are installed)
    networks: list[str] = field(default_factory=lambda: list(NETWORKS["choices"]()), metadata=NETWORKS)
    clips: int = setting(8, at_least(1))  # spread over each video
    frames: int = setting(4, at_least(1))  # of each clip
    fps: float = setting(8.0, above(0, " frames a second"))
    size: int = setting(128, at_least(32, " pixels"))  # frames are scaled to squares of that side
    # spread over the split; null: all
    max_train_videos: int | None = setting(2000, at_least(1))
    max_eval_videos: int | None = setting(1000, at_least(1))
    num_workers: int | None = setting(None, at_least(1))  # processes that decode; null: one a core
    decode_timeout_s: float = setting(60.0, above(0, " seconds"))  # without progress in reading one video
    anew: bool = False  # even where the answers of the same videos and settings are there
    data: PreparedIndexSettings = field(default_factory=PreparedIndexSettings)


@dataclass
class EmbedConfig:
    """The embedding program's configuration; null means as the checkpoint was trained."""

    checkpoint: str | None = None  # a run's folder, a checkpoint, or an exported .safetensors
    pretrained: Any = None  # or published weights, as for training, with model=OPTION
    pretrained_revision: str | None = None  # of a hub name: branch, tag or commit
    init_match: float = setting(1.0, share())
    model: Any = None  # for published weights
    clip: PublishedClipSettings = field(default_factory=PublishedClipSettings)  # for published weights
    videos: Any = None  # files, folders, patterns or listings: one, or a list
    frame_rate: float | None = setting(None, above(0))  # videos are folders of images, that many a second
    dataset: Any = None  # or a dataset; null: the checkpoint's own
    splits: list[str] | None = None  # of the dataset; null: all
    data_root: str | None = None
    prepared: str | None = None  # the name of a prepared copy to read
    out: str | None = None  # folder; null: outputs/embed/TIME
    search: str | None = None  # earlier embeddings, in which the nearest of these videos are looked for
    neighbors: int = setting(5, at_least(0))  # that are listed for every video; 0: none
    # the least cosine of videos of different splits, or of these and those of search, that are listed as near
    # duplicates; null: none are looked for
    near_duplicates: float | None = setting(0.97, between(-1, 1))
    map: str = setting("pca", one_of("pca", "tsne", "none"))  # in two dimensions, on the page
    pictures: bool = True  # a moving picture of every video, for pages
    tokens: bool = False  # all tokens too, as float16
    formats: list[str] = field(default_factory=list, metadata=one_of("fiftyone", "label_studio"))
    eval_clips: int | None = setting(None, at_least(1))
    batch_size: int | None = setting(None, at_least(1))
    # processes that decode; null: as many as there are cores for
    num_workers: int | None = setting(None, at_least(0))
    decode_timeout_s: float | None = setting(None, above(0))  # without progress in reading one video
    # of one picture; a file with larger ones is not decoded
    max_pixels: int | None = setting(None, at_least(1))
    precision: str | None = setting(None, PRECISIONS)
    device: str = "auto"
    trust_targets: bool = False  # build parts of other packages that the checkpoint names


@dataclass
class LabelsConfig:
    """The configuration of the program that looks at labels."""

    # errors: labels that are probably wrong; next: what to label next; may be written without action=
    action: str | None = setting(None, one_of("errors", "next"))
    embeddings: str | None = None  # of labeled videos; may be written without embeddings=
    split: str = "train"  # of them
    folds: int = setting(5, at_least(2))  # that the videos are dealt into, groups kept whole
    # errors: what suspects are ranked by
    rank_by: str = setting("self_confidence", one_of("self_confidence", "normalized_margin"))
    shown: int = setting(120, at_least(1))  # suspects on the page; all are in suspects.csv
    pool: str | None = None  # next: embeddings of the videos to choose from
    strategy: str = setting("margin", one_of("margin", "entropy", "k_center", "random"))
    count: int = setting(50, at_least(1))  # videos to label
    seed: int = setting(0, at_least(0))  # of strategy=random
    out: str | None = None  # folder; null: label_errors/ or label_next/ beside the embeddings


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
    # processes that encode, one thread each; null: one a core
    num_workers: int | None = setting(None, at_least(1))
    # without progress in reading or encoding one file
    decode_timeout_s: float = setting(120.0, above(0, " seconds"))
    max_unreadable_share: float | None = setting(0.02, share(", or be null"))  # as in training; null: any
    # instead of re-encoding: about how large tar files are that the videos are packed into as they are, such as 1GiB
    shards: str | None = setting(None, a_size())
    out: str | None = None  # the folder of the tar files
    prepared: str | None = None  # pack the videos of the copy that has this name
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

    source: str = setting("class_folders", one_of("class_folders", "listing", "frame_folders"))
    path: str | None = None  # the folder of the class folders or frame folders, or the listing
    ground_truth: str | None = None  # for frame folders: CSV of youtube_id, folder_name, label
    # of frame folders, for the command to train with
    frame_rate: float = setting(25.0, above(0, " images a second"))
    out: str | None = None  # folder for train.csv, val.csv, test.csv and annotations.json
    shares: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # of train, val and test
    seed: int = setting(0, at_least(0))
    group_column: int | str | None = None  # of the listing; null: the column named group, if there is one
    group_pattern: str | None = None  # regular expression that finds a video's group in its path
    classes: Any = None  # a list, or a file of class names in order; null: those of the videos, sorted
    listing: SplitListingSettings = field(default_factory=SplitListingSettings)
    paths: str = setting("absolute", one_of("absolute", "relative"))  # in the CSV files; relative: to out
    overwrite: bool = False  # what another split left in out
