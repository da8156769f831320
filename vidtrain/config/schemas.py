"""The typed configuration of programs for models: every setting, its default, and its allowed values.

Untyped nodes are components, which vidtrain.config.targets.check_targets checks; `check_settings` checks the others.
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
SHORT_POLICIES = one_of("repeat_last", "wrap", "stretch", "error")
RESIZES = one_of("antialiased", "vjepa2", "videomae", "pyslowfast")
SIZE_CHANGES = one_of("scale", "refuse")
FORMATS = one_of("onnx", "torch_export", "safetensors")
PRETRAINING_FORMATS = one_of("original", "transformers")  # of what such a run trained
ODD = {"allows": lambda value: value > 0 and value % 2, "must": "must be an odd number: 1, 3, 5 ..."}
OPEN_SHARE = between(0, 1, ", such as 0.9")


# --- the settings -----------------------------------------------------------------------------------------


@dataclass
class ClipSettings:
    """The clips of a video that the model gets. One of frame_step, fps and duration sets the stride.

    `${of_model:KEY,DEFAULT}` is the value of the chosen model's published clips, or DEFAULT without published clips.
    """

    frames: int = SI("${of_model:frames,8}")
    frame_step: int | None = SI("${of_model:frame_step,3}")  # video frames from one clip frame to the next
    fps: float | None = SI("${of_model:fps,null}")  # or frames per second of the clip
    duration: float | None = None  # or seconds that the clip covers
    size: Any = SI("${of_model:size,32}")  # pixels: one number, or [height, width]
    # bilinear is a little faster and softer
    interpolation: str = setting(SI("${of_model:interpolation,bicubic}"), one_of("bicubic", "bilinear"))
    # antialiased: crop, then resize with antialiasing; vjepa2, videomae, pyslowfast: resize the frame without
    # antialiasing, then crop, as in their code
    resize: str = setting("antialiased", RESIZES)
    # for videos whose pixels are not square. ignore: treat them as square; apply: resize as players do
    sample_aspect: str = setting("ignore", one_of("ignore", "apply"))
    train_clips: int = setting(1, at_least(1))
    # differently augmented copies of each training video, which is decoded once for all of them
    repeated_augmentation: int = setting(1, at_least(1))
    eval_clips: int = setting(1, at_least(1))
    # dense: with the stride; uniform: over the whole video, without a stride; vjepa2: frame indices as in V-JEPA 2;
    # vjepa2_random: the same, but also with random windows in evaluation, as in its published evaluations; videomae:
    # as in VideoMAE; pyslowfast: as in PySlowFast; pyslowfast_offset: as in PySlowFast for MViT
    sampling: str = "dense"
    overlap: bool = True  # whether clips of one video may share frames
    # videos shorter than a clip: repeat_last, wrap, error; with sampling=uniform also stretch
    short_video_policy: str = "repeat_last"
    # forward; or reversed, shuffled or single_frame, to measure how much the model relies on motion
    frame_order: str = "forward"
    mean: list[float] = SI("${of_model:mean,[0.485,0.456,0.406]}")  # per channel; the default is ImageNet's
    std: list[float] = SI("${of_model:std,[0.229,0.224,0.225]}")


@dataclass
class IndexSettings:
    """The index of a dataset's files, and limits of the files that are decoded."""

    index_root: str = "${data_root}/index"  # folder of facts about files and listings, for all runs
    # most pixels per frame; files with larger frames are not decoded. The default allows 8192x4320
    max_pixels: int = setting(36_000_000, at_least(1))
    # for frames of another size than the first frame. scale: resize them, as players do; refuse: the file is unreadable
    size_changes: str = setting("scale", SIZE_CHANGES)


@dataclass
class DataSettings(IndexSettings):
    """How a dataset is read."""

    features_root: str = "outputs/features"  # where phases with cache_features keep the encoder's tokens
    prepared: str | None = None  # read the copy that vidtrain.prepare made under this name
    # From a store (http, s3), only the bytes of a clip's frames are fetched. The index needs the whole file once,
    # unless it is an MP4 file without fragments, such as python -m vidtrain.prepare writes. A changed object is noticed
    # at once over HTTP and S3, and within 5 minutes elsewhere. a folder on this machine that keeps whole videos from
    # stores; null: no cache
    cache: str | None = None
    cache_size: str = setting("100GiB", a_size())  # the least recently used videos are deleted beyond this size
    # training videos outside of these bounds are not used; null: no bound
    min_frames: int | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    max_bytes: int | None = None
    # seconds without progress in reading one video, after which its worker is killed
    decode_timeout_s: float = setting(60.0, above(0, " seconds"))
    allow_changed: bool = False  # resume even if training data or labels have changed since the run was started
    # how evenly training draws classes, from 0 (in proportion to their videos) to 1 (all classes equally often)
    class_balanced_sampling: float = setting(0.0, share())


@dataclass
class ExportSettings:
    """How a trained model is exported for other programs (vidtrain.export)."""

    formats: list[str] | None = setting(None, FORMATS)  # null: none
    # input clips of exported graphs. uint8: the graph normalizes them; float32: the caller does
    input: str = setting("uint8", one_of("uint8", "float32"))
    precision: str = setting("fp32", PRECISIONS)  # of weights and computation
    opset: int = 18  # ONNX operator set
    # largest allowed difference to PyTorch, relative to the largest logit; null: 1e-3, for bf16 1e-1, for fp16 2e-2
    max_difference: float | None = setting(None, above(0))
    card: bool | None = False  # write a model card in Markdown; only for a run


@dataclass
class ProbeSettings:
    """Measurements at every evaluation of pretraining, besides the loss: probes, which are simple classifiers on the
    features of a labeled dataset, and pictures."""

    dataset: Any = None  # a labeled dataset: dataset@probe.dataset=OPTION; null: no probes
    # at most this many videos of each split, evenly spread over it; null: all
    max_videos: int | None = setting(1000, at_least(2))
    pictures: bool = False  # pictures of masked videos and of features


@dataclass
class RunConfig:
    """The training app's configuration. Untyped nodes are components, checked by `check_targets`."""

    name: str = MISSING
    seed: int = setting(0, at_least(0))
    run_dir: str | None = None
    data_root: str = "data"
    init_from: str | None = None
    # which encoder of a pretraining run init_from loads; null: its teacher, or encoder if it has no teacher
    init_part: str | None = setting(None, one_of("encoder", "teacher"))
    # published weights: a file (FILE:2 for probe number 2 in it), a folder, a hub name, timm:NAME, package:NAME, a name
    # in torchvision, or a list of several
    pretrained: Any = None
    pretrained_revision: str | None = None  # of a hub name: branch, tag or commit
    # least share of the encoder's tensors that must match; 1: no tensor is missing, unexpected or of another shape
    init_match: float = setting(1.0, share())
    clip: ClipSettings = field(default_factory=ClipSettings)
    data: DataSettings = field(default_factory=DataSettings)
    # flip is the probability that a training video is mirrored; a dataset's option may set another one
    dataset: Any = field(default_factory=lambda: {"flip": 0.5})
    augmentation: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    stage: dict[str, PhaseSettings] = MISSING
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: Any = MISSING
    objective: Any = None  # the objective of pretraining without labels; null: train on labels
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    export: ExportSettings = field(default_factory=ExportSettings)  # of the best checkpoint, at the end


@dataclass
class BenchmarkConfig(RunConfig):
    """The benchmarking program's configuration: a run's configuration, and how it is measured."""

    steps: int = setting(50, at_least(2))  # optimizer steps that are timed
    warmup: int = setting(5, at_least(0))  # steps before them that are not timed
    phase: str | None = None  # the phase of the stage; null: the first
    compile_trial: bool | None = None  # try torch.compile, which may take minutes; null: on a GPU
    # peak TFLOP/s of the device, to compute its utilization; null: known from its name
    peak_tflops: float | None = setting(None, above(0))
    prove: bool = False  # apply the first advice that settings can apply, and measure before and after
    rounds: int = setting(3, at_least(1))  # of prove: measurements of before and after, in turns
    out: str | None = None  # folder for benchmark.json; null: outputs/benchmark/NAME/TIME


@dataclass
class EvaluationSettings:
    """Settings that evaluation and calibration share; null means the value of the checkpoint's training."""

    checkpoint: str | None = None  # a run's folder, a checkpoint, or an exported .onnx or .safetensors
    from_table: str | None = None  # or the folder of an earlier evaluation, whose logits are used again
    # for a checkpoint that holds both, such as last.pt: the trained weights or their moving average
    weights: str | None = setting(None, one_of("raw", "ema"))
    split: str = "test"
    # folder for tables; null: eval/SPLIT_CLIPSxCROPS in the run's folder, or beside the folder from_table
    out: str | None = None
    overwrite: bool = False  # replace the view table of another evaluation in out
    allow_changed: bool = False  # evaluate even if labels have changed since the run was started
    data_root: str | None = None
    prepared: str | None = None  # the name of a prepared copy to read
    eval_clips: int | None = setting(None, at_least(1))
    crops: int | None = setting(None, at_least(1))
    fusion: str | None = setting(None, FUSIONS)
    frame_order: str | None = setting(None, FRAME_ORDERS)
    # further orders of frames, evaluated in the same pass over the videos
    frame_order_ablations: list[str] = field(default_factory=list, metadata=FRAME_ORDERS)
    short_video_policy: str | None = setting(None, SHORT_POLICIES)  # videos shorter than a clip
    # most pixels per frame; files with larger frames are not decoded
    max_pixels: int | None = setting(None, at_least(1))
    batch_size: int | None = setting(None, at_least(1))
    num_workers: int | None = setting(None, at_least(0))
    cpu_threads: int | None = setting(None, at_least(1))
    precision: str | None = None
    device: str = "auto"
    dataset: Any = None
    # Allow the checkpoint to name classes of any package, which are then imported
    trust_targets: bool = False


@dataclass
class EvaluateConfig(EvaluationSettings):
    """The evaluation program's configuration; null means the value of the checkpoint's training."""

    calibrated: bool | None = None  # use the checkpoint's calibration; null: if it has one


@dataclass
class CalibrateConfig(EvaluationSettings):
    """The calibration program's configuration; null means the value of the checkpoint's training."""

    split: str = "val"
    # temperature: one number, which changes no predicted class; vector: two numbers per class
    method: str = setting("temperature", one_of("temperature", "vector"))
    # a threshold for each class, with this precision or with this recall on val; set at most one of them
    min_precision: float | None = setting(None, OPEN_SHARE)
    min_recall: float | None = setting(None, OPEN_SHARE)
    set_coverage: float | None = setting(None, OPEN_SHARE)  # share of prediction sets that hold the true class
    by_class: bool = False  # set_coverage holds within every class
    remove: bool = False  # remove the checkpoint's calibration


@dataclass
class WindowSettings:
    """Windows that slide along a video."""

    # seconds from one window to the next; null: no windows, each video is classified as a whole
    stride: float | None = setting(None, above(0, " seconds"))
    length: float | None = setting(None, above(0, " seconds"))  # null: the time span of a window's clips
    # number of neighboring windows whose probabilities are averaged before labeling
    smooth: int = setting(1, ODD)
    # least probability of a label; null: 0, or 0.5 if videos may have several labels
    threshold: float | None = setting(None, share())


@dataclass
class PredictConfig:
    """The predicting program's configuration; null means the value of the checkpoint's training."""

    checkpoint: str = MISSING  # a run's folder, a checkpoint, or an exported .onnx or .safetensors
    videos: Any = None  # files, folders, patterns or listings: one, or a list
    frame_rate: float | None = setting(None, above(0))  # images per second, if videos are folders of images
    format: str = setting("table", one_of("table", "json", "csv"))  # of the results on standard output
    topk: int = setting(5, at_least(1))
    # a folder, or a .csv or .json file; null: outputs/predict/TIME if the output needs a folder
    out: str | None = None
    logits: bool = False  # write logits.npz, of every view and of the video
    windows: WindowSettings = field(default_factory=WindowSettings)
    render: bool = False  # write a video with its labels, and a sheet of the model's frames with heat maps
    # the heat map of render. attention: of an attentive pooler; auto: attention if the model has it, else grad_cam
    heat: str = setting("auto", one_of("auto", "attention", "grad_cam", "none"))
    heat_class: str | None = None  # class that grad_cam explains; null: the most probable one
    eval_clips: int | None = setting(None, at_least(1))  # with windows, null is 1
    crops: int | None = setting(None, at_least(1))
    fusion: str | None = setting(None, one_of("mean_logits", "mean_probs", "joint"))
    batch_size: int | None = setting(None, at_least(1))  # videos, or windows
    # decoding processes; null: by the number of cores
    num_workers: int | None = setting(None, at_least(0))
    decode_timeout_s: float | None = setting(None, above(0))  # seconds without progress in reading one video
    # most pixels per frame; files with larger frames are not decoded
    max_pixels: int | None = setting(None, at_least(1))
    size_changes: str | None = setting(None, SIZE_CHANGES)
    precision: str | None = setting(None, PRECISIONS)
    device: str = "auto"
    calibrated: bool | None = None  # use the checkpoint's calibration; null: if it has one
    # Allow the checkpoint to name classes of any package, which are then imported
    trust_targets: bool = False


@dataclass
class PublishedClipSettings:
    """Clips for published weights; null means the value of the model's published clips, if it is known."""

    frames: int | None = None
    frame_step: int | None = None  # video frames from one clip frame to the next; or fps, or duration
    fps: float | None = None
    duration: float | None = None
    sampling: str | None = None  # uniform needs no stride
    size: Any = None  # pixels: one number, or [height, width]
    short_side: int | None = None  # pixels to which a frame's short side is resized before the center crop
    interpolation: str | None = None
    resize: str | None = setting(None, RESIZES)
    sample_aspect: str | None = None  # ignore or apply, for pixels that are not square
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class SourceSettings:
    """A checkpoint or published weights."""

    checkpoint: str | None = None  # a run's folder, a checkpoint, or to embed an exported .safetensors
    pretrained: Any = None  # or published weights, as for training
    pretrained_revision: str | None = None  # of a hub name: branch, tag or commit
    # least share of the encoder's tensors that must match; 1: no tensor is missing, unexpected or of another shape
    init_match: float = setting(1.0, share())
    model: Any = None  # for published weights
    clip: PublishedClipSettings = field(default_factory=PublishedClipSettings)  # for published weights


@dataclass
class ExportConfig(ExportSettings, SourceSettings):
    """The exporting program's configuration: the export of a run or a checkpoint, or of published weights."""

    # class names for published weights: a list, or a file with one per line; null: the published names
    classes: Any = None
    out: str | None = None  # folder; null: export/ in the run's folder, or outputs/export/NAME
    # null: onnx, torch_export and safetensors; for a run of pretraining, original and transformers
    formats: list[str] | None = setting(None, one_of(*FORMATS["choices"](), *PRETRAINING_FORMATS["choices"]()))
    card: bool | None = None  # write a model card; null: if there is a run
    calibrated: bool | None = None  # use the checkpoint's calibration; null: if it has one
    # Allow the checkpoint to name classes of any package, which are then imported
    trust_targets: bool = False


@dataclass
class CompareConfig:
    """The comparing program's configuration."""

    # run folders, folders that hold runs, such as a sweep, or glob patterns: one, or a list. The page of a single run
    # is written again
    runs: Any = None
    # null: top1, or map if videos have several labels (exact_match if a run lacks logits.npz)
    metric: str | None = setting(None, a_metric(closing=True))
    split: str | None = None  # name of a folder in eval/; null: the evaluation at the end of each run
    baseline: str | None = None  # a run of the recipe that others are compared with; null: the first
    repeats: list[str] = field(default_factory=lambda: ["seed"])  # settings that may differ within a recipe
    across_protocols: bool = False  # also compare runs that were evaluated in different ways
    bootstrap: int = setting(10000, at_least(100, " draws"))  # draws of the bootstrap; at most 1000 for map
    confidence: float = setting(0.95, between(0, 1, ", such as 0.95"))  # confidence of the intervals
    seed: int = setting(0, at_least(0))  # seed of the bootstrap
    # folder for the page, tables and pictures; null: outputs/compare/TIME, or the folder of the single run
    out: str | None = None


@dataclass
class SweepConfig:
    """The configuration of the program that shows and resumes sweeps."""

    action: str | None = setting(None, one_of("status", "resume"))  # may be written without action=
    folder: str | None = None  # of the sweep; may be written without folder=
    watch: bool = False  # status: update the table on a terminal until all trials have ended
    interval: float = setting(2.0, at_least(0.2, " seconds"))  # seconds between two updates
    retry: bool = False  # resume: repeat trials that failed, diverged or ran out of memory


@dataclass
class EmbedConfig(SourceSettings):
    """The embedding program's configuration; null means the value of the checkpoint's training."""

    # the encoder to use of a pretraining run; null: the teacher if it has one, else encoder
    init_part: str | None = setting(None, one_of("encoder", "teacher"))
    videos: Any = None  # files, folders, patterns or listings: one, or a list
    frame_rate: float | None = setting(None, above(0))  # images per second, if videos are folders of images
    dataset: Any = None  # or a dataset; null: the checkpoint's own
    splits: list[str] | None = None  # splits of the dataset; null: all
    data_root: str | None = None
    prepared: str | None = None  # the name of a prepared copy to read
    out: str | None = None  # folder; null: outputs/embed/TIME
    search: str | None = None  # earlier embeddings, among which the neighbors of these videos are searched
    neighbors: int = setting(5, at_least(0))  # nearest neighbors listed for every video
    # the least cosine similarity at which videos of two splits, or a video and one of search, are listed as near
    # duplicates; null: no list
    near_duplicates: float | None = setting(0.97, between(-1, 1))
    map: str = setting("pca", one_of("pca", "tsne", "none"))  # the map of the page, in two dimensions
    pictures: bool = True  # an animated picture of every video, for pages
    tokens: bool = False  # also write all tokens, as float16
    formats: list[str] = field(default_factory=list, metadata=one_of("parquet", "fiftyone", "label_studio"))
    eval_clips: int | None = setting(None, at_least(1))
    batch_size: int | None = setting(None, at_least(1))
    # decoding processes; null: by the number of cores
    num_workers: int | None = setting(None, at_least(0))
    decode_timeout_s: float | None = setting(None, above(0))  # seconds without progress in reading one video
    # most pixels per frame; files with larger frames are not decoded
    max_pixels: int | None = setting(None, at_least(1))
    precision: str | None = setting(None, PRECISIONS)
    device: str = "auto"
    # Allow the checkpoint to name classes of any package, which are then imported
    trust_targets: bool = False
