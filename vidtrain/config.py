"""The configuration: its typed schema, and a check that reports every fault at once, before anything is built."""

import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.errors import UserError
from vidtrain.training.settings import PhaseSettings, TrainerSettings

CONF = Path(__file__).resolve().parents[1] / "conf"


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
    prepared: str | None = None  # read the copy that vidtrain.prepare made under this name
    # training videos to leave out: null keeps them
    min_frames: int | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    max_bytes: int | None = None
    time_limit: float = 60.0  # seconds that reading one video may take in a worker


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
    optimizer: Any = MISSING
    schedule: Any = MISSING
    stage: dict[str, PhaseSettings] = MISSING
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: Any = MISSING


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
class AuditDataSettings:
    index_root: str = "${data_root}/index"  # as in training: what is found of the files is kept there for it


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
    data: AuditDataSettings = field(default_factory=AuditDataSettings)


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


@dataclass
class SplitListingSettings:
    """How to read a listing; what is null is recognized (vidtrain.data.sources.listings.ListingFormat)."""

    root: str | None = None  # what paths are relative to; null: the listing's folder
    delimiter: str | None = None
    header: bool | None = None
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
    out: str | None = None  # folder for train.csv, val.csv, test.csv and annotations.json
    shares: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # of train, val and test
    seed: int = 0
    group_column: int | str | None = None  # of the listing; null: the column named group, if there is one
    group_pattern: str | None = None  # regular expression that finds a video's group in its path
    classes: Any = None  # a list, or a file of class names in order; null: those of the videos, sorted
    listing: SplitListingSettings = field(default_factory=SplitListingSettings)
    paths: str = "absolute"  # in the CSV files; relative: to out
    overwrite: bool = False  # what another split left in out


def register_schemas() -> None:
    """Makes the schemas known to Hydra, by the names that conf/*.yaml put first in their defaults."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="audit_schema", node=AuditConfig)
    store.store(name="prepare_schema", node=PrepareConfig)
    store.store(name="split_schema", node=SplitConfig)


# --- what fits what ---------------------------------------------------------------------------------------


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the nearest of `known`, or what there is to choose from."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def components(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a `_target_` below `node`, with its dotted path, outermost first."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from components(node._get_node(key), f"{path}.{key}" if path else str(key))
    elif isinstance(node, ListConfig) and not node._is_none():
        for index in range(len(node)):
            yield from components(node._get_node(index), f"{path}[{index}]")


def check_targets(cfg: DictConfig) -> list[tuple[str, str]]:
    """Holds every component's arguments against its target's signature; returns faults as (key, what is wrong).

    Finds targets that do not exist, arguments that they do not take, required ones that are absent (unless
    the node is partial), and plain values (numbers, text, lists) of another type than annotated.
    """
    faults = []
    for path, node in components(cfg):
        try:
            target = get_object(node["_target_"])
        except Exception as error:  # importing a target runs foreign code, which may raise anything
            faults.append((f"{path}._target_", f"{node['_target_']} cannot be imported: {error}"))
            continue
        parameters = inspect.signature(target).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        hints = _hints(target)
        given = [str(key) for key in node if not str(key).startswith("_")]
        for name in given:
            if name not in names and not takes_any:
                known = [each for each in names if each not in given]
                faults.append(
                    (f"{path}.{name}", f"{node['_target_']} has no such argument{suggest(name, known)}")
                )
                continue
            if OmegaConf.is_missing(node, name):
                faults.append((f"{path}.{name}", "must be given a value"))
                continue
            try:
                value = node[name]
            except OmegaConfBaseException as error:
                faults.append((f"{path}.{name}", str(error).splitlines()[0]))
                continue
            # what is referred to is checked where it stands
            if name in hints and not OmegaConf.is_interpolation(node, name) and not fits(value, hints[name]):
                faults.append((f"{path}.{name}", f"{value!r} is not {_spell(hints[name])}"))
        if not OmegaConf.select(node, "_partial_"):
            for name in names:
                if parameters[name].default is inspect.Parameter.empty and name not in given:
                    faults.append((f"{path}.{name}", f"{node['_target_']} needs this argument"))
    return faults


PLAIN = (bool, int, float, str, type(None))


def _hints(target: Any) -> dict[str, Any]:
    """Annotations by argument; one that cannot be resolved here says nothing and is left out."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = {}
    for name, hint in inspect.get_annotations(inspect.unwrap(function)).items():
        try:
            holder = type("holder", (), {"__annotations__": {name: hint}})
            hints |= typing.get_type_hints(holder, globalns=inspect.unwrap(function).__globals__)
        except (NameError, TypeError):
            continue
    return hints


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may stand for a parameter annotated `hint`; what is not plain always may."""
    if isinstance(value, DictConfig):
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # YAML holds no objects: beside a plain alternative, a class such as Tensor cannot be what was meant
        plain = [each for each in arguments if each in PLAIN or typing.get_origin(each)]
        return any(fits(value, each) for each in plain or arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, ListConfig):
            return False
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return len(value) == len(arguments) and all(map(fits, value, arguments))
        return not arguments or all(fits(each, arguments[0]) for each in value)
    return True


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def reason(error: BaseException) -> str:
    """The innermost cause of an error that Hydra wrapped, without Hydra's frame."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return str(error)


def where(key: str, overrides: Sequence[str], choices: dict[str, str]) -> str:
    """Where a key got its value: the overrides that set it or something below it, or the file of conf/ that did."""
    set_here = []
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        if key == name or name.startswith(f"{key}.") or ("." in name and key.startswith(f"{name}.")):
            set_here.append(repr(override))
    if set_here:
        return f"override {', '.join(set_here)}"
    group = key.split(".")[0].split("[")[0]
    option = choices[group] if group in choices else None
    return f"conf/{group}/{option}.yaml" if option else "the configuration"
