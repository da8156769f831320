"""The typed configuration of the programs; those for datasets are in schemas_data.py.

Untyped nodes are components, checked by vidtrain.config.targets.check_targets.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, SI

from vidtrain.training.run import PhaseSettings, TrainerSettings


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
    interpolation: str = SI("${of_model:interpolation,bicubic}")  # or bilinear, a little faster and softer
    sample_aspect: str = "ignore"  # pixels that are not square: as if they were; apply: as players show them
    train_clips: int = 1
    repeated_augmentation: int = (
        1  # differently augmented copies of each training video, from one decoding of it
    )
    eval_clips: int = 1
    sampling: str = "dense"  # dense; uniform: over the whole video, without a stride; vjepa2: its indices
    overlap: bool = True  # whether clips of one video may share frames
    short_video_policy: str = "repeat_last"  # videos shorter than a clip: repeat_last, wrap, error
    frame_order: str = "forward"  # probes of what time is worth: reversed, shuffled, single_frame
    mean: list[float] = SI("${of_model:mean,[0.485,0.456,0.406]}")  # of ImageNet
    std: list[float] = SI("${of_model:std,[0.229,0.224,0.225]}")


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
    decode_timeout_s: float = (
        60.0  # seconds without progress in reading one video, after which its worker is ended
    )
    max_pixels: int = (
        36_000_000  # of one picture; a file with larger ones is not decoded: 8192x4320 is just allowed
    )
    size_changes: str = "scale"  # frames of another size than the first: scale (to it, as players do), refuse
    allow_changed: bool = False  # resume though training data or labels differ from when the run was started
    class_balanced_sampling: float = (
        0.0  # how evenly training draws classes: 0 as the videos are, 1 all alike
    )


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
    dataset: Any = field(
        default_factory=lambda: {"flip": 0.5}
    )  # a chance to be mirrored, unless it says another
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

    checkpoint: str | None = None  # a run's folder, a checkpoint, or an exported .onnx or .safetensors
    from_table: str | None = None  # or the folder of an earlier evaluation: no video and no model is opened
    weights: str | None = None  # raw, ema (their average), of a checkpoint that holds both: last.pt
    split: str = "test"
    out: str | None = (
        None  # folder for tables; null: eval/SPLIT_CLIPSxCROPS in the run's, or beside from_table's
    )
    overwrite: bool = False  # the view table of another evaluation that out holds
    allow_changed: bool = False  # evaluate though labels differ from when the run was started
    data_root: str | None = None
    prepared: str | None = None  # the name of a prepared copy to read
    eval_clips: int | None = None
    crops: int | None = None
    fusion: str | None = None  # mean_logits, mean_probs, joint, vote
    frame_order: str | None = None  # forward, reversed, shuffled, single_frame
    frame_order_ablations: list[str] = field(
        default_factory=list
    )  # other orders of frames, judged in the same pass
    short_video_policy: str | None = None  # videos shorter than a clip: repeat_last, wrap, error
    max_pixels: int | None = None  # of one picture; a file with larger ones is not decoded
    batch_size: int | None = None
    num_workers: int | None = None
    cpu_threads: int | None = None
    precision: str | None = None
    device: str = "auto"
    dataset: Any = None
    trust_targets: bool = False  # build parts of other packages that the checkpoint names


@dataclass
class WindowSettings:
    """Windows that slide along a video."""

    stride: float | None = None  # seconds from one window to the next; null: videos are judged as a whole
    length: float | None = None  # seconds; null: what the clips of a window span
    smooth: int = 1  # windows whose probabilities are averaged before they are labeled, an odd number
    threshold: float | None = None  # the least probability of an answer; null: 0, and 0.5 of several labels


@dataclass
class PredictConfig:
    """The predicting program's configuration; null means as the checkpoint was trained."""

    checkpoint: str = MISSING  # a run's folder, a checkpoint, or an exported .onnx or .safetensors
    videos: Any = None  # files, folders, patterns or listings: one, or a list
    frame_rate: float | None = None  # videos are folders of images, that many a second
    format: str = "table"  # of the results on standard output: table, json, csv
    topk: int = 5
    out: str | None = (
        None  # folder, or .csv or .json file; null: outputs/predict/TIME where a folder is needed
    )
    logits: bool = False  # write logits.npz, of every view and of the video
    windows: WindowSettings = field(default_factory=WindowSettings)
    render: bool = False  # a labeled video and a sheet of what the model saw, with where it looked
    heat: str = "auto"  # where it looked: attention (of an attentive pooler), grad_cam, none; auto: the first there is
    heat_class: str | None = None  # the class that grad_cam is of; null: the most probable one
    eval_clips: int | None = None  # with windows, null is 1
    crops: int | None = None
    fusion: str | None = None
    batch_size: int | None = None  # videos, or windows
    num_workers: int | None = None  # processes that decode; null: as many as there are cores for
    decode_timeout_s: float | None = None  # seconds without progress in reading one video
    max_pixels: int | None = None  # of one picture; a file with larger ones is not decoded
    size_changes: str | None = None  # scale, refuse
    precision: str | None = None
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
    init_match: float = 0.9  # the least share of the encoder's tensors that must match
    classes: Any = None  # names for published weights: a list, or a file with one a line; null: as published
    model: Any = None  # for published weights
    clip: PublishedClipSettings = field(default_factory=PublishedClipSettings)  # for published weights
    out: str | None = None  # folder; null: export/ in the run's, or outputs/export/NAME
    formats: list[str] | None = field(default_factory=lambda: ["onnx", "torch_export", "safetensors"])
    card: bool | None = None  # null: where there is a run
    trust_targets: bool = False  # build parts of other packages that the checkpoint names


@dataclass
class CompareConfig:
    """The comparing program's configuration."""

    runs: Any = None  # run folders, folders of them such as a sweep, or patterns: one, or a list
    metric: str | None = None  # null: top1, or exact_match where videos have several labels
    split: str | None = None  # the folder below eval/; null: what each run closed with
    baseline: str | None = None  # a run of the recipe that others are compared with; null: the first
    repeats: list[str] = field(default_factory=lambda: ["seed"])  # settings that do not make another recipe
    across_protocols: bool = False  # compare runs that were evaluated in different ways too
    bootstrap: int = 10000  # draws
    confidence: float = 0.95  # of the intervals
    seed: int = 0  # of the draws
    out: str | None = None  # folder for the page, tables and pictures; null: outputs/compare/TIME


@dataclass
class SweepConfig:
    """The configuration of the program that looks at sweeps."""

    action: str | None = None  # status or resume; may be written without action=
    folder: str | None = None  # of the sweep; may be written without folder=
    watch: bool = False  # draw the table again and again on a terminal, until all trials have ended
    interval: float = 2.0  # seconds between two drawings
    retry: bool = False  # resume: run those again that failed, diverged or ran out of memory
