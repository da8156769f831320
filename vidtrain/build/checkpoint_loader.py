"""Opens a trained model from a run's folder, a checkpoint or an exported file, with its configuration and classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.config.references import STRIDES, published_clips, put_published, to_dict
from vidtrain.config.renames import LOSS, migrate
from vidtrain.config.trust import MAX_LISTED, as_text, check_trust
from vidtrain.data.manifest.manifest import spelled_classes
from vidtrain.errors import UserError
from vidtrain.files.escaping import first_lines
from vidtrain.models.weights import CARD_FORMAT, CARD_KEY

if TYPE_CHECKING:  # so that --help does not wait seconds for the import of torch
    import torch
    from torch import Tensor, nn

    from vidtrain.models.classifier import EncoderWithHead, VideoClassifier
    from vidtrain.models.exporting import OnnxClassifier
    from vidtrain.models.lora import Adapters
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.run import Console

REQUIRED_KEYS = ("model", "classes", "config")
EXPORT_SUFFIXES = (".onnx", ".safetensors")
GEOMETRY = "vidtrain.data.augment.geometry"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The content of a checkpoint or an exported file.

    `config` is the configuration of its training; references to other settings are not resolved. `weights` is the state
    dict, or None for an ONNX graph, which holds its weights itself. `card` is the metadata of an exported file.
    `adapters` are the adapters of its training; they also name the files of weights that `weights` omits. `computed`
    holds, by dotted key, values that were removed from `config` because they would read the environment of the user who
    opens the file, such as `${oc.env:DATA}` of data_root.
    """

    source: Path
    config: Mapping[str, Any]
    classes: tuple[str, ...]
    weights: "Mapping[str, Tensor] | None"
    card: Mapping[str, Any] | None = None
    adapters: "Adapters | None" = None
    computed: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_pretraining(self) -> bool:
        return self.config.get("objective") is not None

    def check_computed(self, used: Sequence[str], options: Mapping[str, str], cfg: DictConfig) -> None:
        """Raises `UserError` if the keys `used` of the configuration include values of `computed`.

        `options` maps each option of the program to the key that it sets. Keys that `cfg` sets in this way are allowed.
        """
        set_keys = [key for option, key in options.items() if cfg[option] is not None]
        lines = [
            f"{key}: {text}" + "".join(f"; set {option}=" for option, target in options.items() if target == key)
            for key, text in self.computed.items()
            if any(_is_below(key, [used_key]) or _is_below(used_key, [key]) for used_key in used)
            and not _is_below(key, set_keys)
        ]
        if lines:
            raise UserError(
                f"the checkpoint {self.source} refers to variables of your environment, which a file may read only if "
                "you trust it:\n  "
                + "\n  ".join(first_lines(lines, MAX_LISTED))
                + "\nIf you trust the file, set trust_targets=true"
            )

    def model(self, cfg: DictConfig, ranks: "Ranks", merged: bool = False) -> "VideoClassifier | OnnxClassifier":
        """The model with its weights, on the ranks' device; `cfg` is `config` with the caller's changes.

        Adapters stay separate from their layers unless `merged`. Raises `UserError` for weights that do not fit `cfg`,
        for a base that is absent or has changed, and for an ONNX graph with another kind of fusion.
        """
        from vidtrain.build import parts as build
        from vidtrain.models.exporting import OnnxClassifier
        from vidtrain.models.lora import merge_adapters

        if self.weights is None:
            check_fusion(self.config["model"]["fusion"], cfg.model.fusion, self.source)
            return OnnxClassifier(self.source, cfg.model.fusion)
        model = build.model(cfg, len(self.classes), ranks)
        restore(model, self.adapters, self.weights, self.source)
        if merged and self.adapters is not None:
            merge_adapters(model)
        return model

    def transform(
        self, cfg: DictConfig, model: "VideoClassifier | OnnxClassifier", device: "torch.device"
    ) -> "nn.Module":
        """The transform from uint8 clips to the input of `model`. It normalizes, unless an ONNX graph does."""
        from torch import nn

        from vidtrain.build import parts as build
        from vidtrain.models.exporting import OnnxClassifier

        if isinstance(model, OnnxClassifier) and model.takes_uint8:
            return nn.Identity()
        return build.device_transform(cfg, device)


def find_checkpoint(named: str) -> Path:
    """The file that a user has `named`, or the best checkpoint of a run's folder.

    Raises `UserError` if it is absent, or a folder without a run.
    """
    path = Path(named)
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"checkpoint={named}: there is no such file or folder")
    best = path / "checkpoints" / "best.pt"
    if best.is_file():
        return best
    if (path / "run.json").is_file():
        raise UserError(f"checkpoint={named}: the run has no checkpoints/best.pt yet; name another checkpoint of it")
    raise UserError(f"checkpoint={named} is a folder, but no run's folder; name a run's folder, or a file")


def check_checkpoint(named: str) -> list[tuple[str, str]]:
    """The fault of `find_checkpoint`, if any, in a list of (key, what is wrong)."""
    try:
        find_checkpoint(named)
    except UserError as error:
        return [("checkpoint", str(error).removeprefix("checkpoint="))]
    return []


def check_source(cfg: DictConfig, published_options: Sequence[str]) -> list[tuple[str, str]]:
    """The faults of options that name either a checkpoint or published weights. `published_options`, and `clip`, are
    only for published weights."""
    if (cfg.checkpoint is None) == (cfg.pretrained is None):
        return [("checkpoint", "give either checkpoint=RUN or pretrained=WEIGHTS")]
    if cfg.checkpoint is None:
        return [] if cfg.model is not None else [("model", "must be chosen for published weights: model=OPTION")]
    unused = [key for key in published_options if cfg[key] is not None]
    unused += [f"clip.{key}" for key in cfg.clip if cfg.clip[key] is not None]
    faults = [(key, "is only for pretrained=WEIGHTS; a checkpoint holds its own") for key in unused]
    return faults + check_checkpoint(cfg.checkpoint)


def changed_config(config: Mapping[str, Any], cfg: DictConfig, keys: Mapping[str, str]) -> DictConfig:
    """The configuration of a checkpoint, changed by the options of the command line, `cfg`.

    `keys` maps each option of the program to the key that it sets. An option that is None changes nothing.
    """
    trained = migrate(config, f"the checkpoint {cfg.checkpoint}")
    for option, key in keys.items():
        if cfg[option] is not None:
            OmegaConf.update(trained, key, cfg[option], merge=False)
    return trained


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, or None if the checkpoint was moved out of it."""
    folder = checkpoint.resolve().parent.parent
    return folder if (folder / "run.json").is_file() else None


def open_trained(
    path: Path, trust_targets: bool, weights: str | None = None, pretraining: bool = False
) -> LoadedCheckpoint:
    """Reads a checkpoint, or an exported .onnx or .safetensors file, onto the CPU, without running code from it.

    `weights` chooses the "raw" weights or their average, "ema", of a checkpoint that holds both. None chooses its entry
    "model": in best.pt the weights that val selected, in last.pt the raw ones.

    Raises `UserError` naming the file when it is absent, damaged, incomplete or of another program, or of pretraining
    without `pretraining`. Without `trust_targets`, the configuration cannot read environment variables, and a
    configuration that would build classes from outside vidtrain also raises `UserError`.
    """
    from vidtrain.models.lora import Adapters
    from vidtrain.training import checkpoint

    if path.suffix in EXPORT_SUFFIXES:
        if weights is not None:
            raise UserError(f"weights={weights}: the exported file {path} holds one set of weights; remove weights=")
        trained = _open_exported(path)
    elif path.suffix == ".pt2":
        raise UserError(
            f"checkpoint {path} is a torch.export program, for torch.export.load; name the .onnx or .safetensors file "
            "of the export, or the checkpoint that it was made from"
        )
    else:
        payload = checkpoint.load(path)
        absent = [key for key in REQUIRED_KEYS if key not in payload]
        if absent:
            raise UserError(
                f"checkpoint {path} lacks {', '.join(absent)} and cannot be used; name a checkpoint that training wrote"
            )
        classes = spelled_classes(payload["classes"])
        adapters = Adapters.of(payload, path)
        trained = LoadedCheckpoint(
            path, payload["config"], classes, _weights(payload, weights, path), adapters=adapters
        )
    if not isinstance(trained.config, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(trained.config).__name__} in place of a configuration")
    if trained.is_pretraining and not pretraining:
        raise UserError(
            f"checkpoint {path} is of pretraining and has no classifier: train one that starts from it, with "
            f"python -m vidtrain.train dataset=... model=... init_from={path}"
        )
    if trust_targets:
        return trained
    check_trust(trained.config, str(path))
    config, computed = as_text(trained.config)
    return replace(trained, config=config, computed=computed)


def restore(model: "EncoderWithHead", adapters: "Adapters | None", weights: "Mapping[str, Tensor]", path: Path) -> None:
    """Loads the `weights` of the checkpoint at `path` into a new model. If the checkpoint's model has `adapters`, this
    first adds them and loads their base.

    Raises `UserError` if a file of the base is absent or has changed, and for weights that do not fit.
    """
    from vidtrain.training import checkpoint

    if adapters is None:
        checkpoint.restore(model, weights, str(path))
        return
    if adapters.base is not None:
        from vidtrain.models.weights.loading import load_base

        load_base(model, adapters.base, path)
    adapters.add_to(model)
    checkpoint.restore(model, weights, str(path), adapters.left_out)


def _is_below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith((f"{parent}.", f"{parent}[")) for parent in parents)


def _weights(payload: Mapping[str, Any], wanted: str | None, path: Path) -> "Mapping[str, Tensor]":
    """The `wanted` weights of a checkpoint; see `open_trained`."""
    # Old checkpoints do not have this entry, and hold no average
    held = payload["weights"] if "weights" in payload else "raw"
    if wanted in (None, held):
        return payload["model"]
    if wanted == "ema" and "ema" in payload and payload["ema"] is not None:
        return payload["ema"]
    names = {"raw": "the raw weights", "ema": "an average of the weights (ema)"}
    last = path.with_name("last.pt")
    hint = (
        f"; the run's last checkpoint may: checkpoint={last}"
        if last != path and last.is_file()
        else "; training keeps an average with trainer.ema, such as 0.999"
        if wanted == "ema"
        else ""
    )
    raise UserError(f"weights={wanted}: checkpoint {path} does not hold {names[wanted]}, only {names[held]}{hint}")


def _open_exported(path: Path) -> LoadedCheckpoint:
    if path.suffix == ".onnx":
        from vidtrain.models.exporting import OnnxClassifier

        metadata, weights = OnnxClassifier(path, fusion="").metadata, None
    else:
        from vidtrain.models.weights.files import read_safetensors

        metadata, weights = read_safetensors(path)
    if CARD_KEY not in metadata:
        raise UserError(
            f"{path} cannot be used, as it lacks the metadata that python -m vidtrain.export writes into a file"
        )
    try:
        card = json.loads(metadata[CARD_KEY])
        if card["format"] != CARD_FORMAT:
            raise UserError(f"{path} is of format {card['format']}, and this version of vidtrain reads {CARD_FORMAT}")
        return LoadedCheckpoint(path, card["config"], spelled_classes(card["classes"]), weights, card)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"the card in {path} is damaged ({error!r}); export the model again") from error


def check_fusion(exported: str, wanted: str, source: Path) -> None:
    """Raises `UserError` for a fusion that an exported graph cannot have: joint fusion is part of the graph."""
    if exported != wanted and "joint" in (exported, wanted):
        raise UserError(f"{source} was exported with model.fusion={exported}, which cannot be changed to {wanted}")


# --- published weights ----------------------------------------------------------------------------------------


def published_config(cfg: DictConfig, name: str) -> DictConfig:
    """A run's configuration for published weights. Its clip settings come from the user or else from the option of the
    model. Raises `UserError` for settings that neither gives."""
    chosen = {key: value for key, value in to_dict(cfg.clip).items() if value is not None}
    known = published_clips(cfg) | chosen
    short_side = chosen.pop("short_side", known.get("short_side"))
    absent = [f"clip.{key}" for key in ("frames", "size", "mean", "std") if key not in known]
    if known.keys().isdisjoint(STRIDES) and known.get("sampling") != "uniform":
        absent.append("a stride, such as clip.frame_step=4")
    if absent:
        raise UserError(f"the clips of the training of {name} are not known: set {', '.join(absent)}")
    train = {"_target_": f"{GEOMETRY}.ShortSideCrop", "short_side_ratio": [1.0, 1.0], "flip": 0.0}
    crops = {"_target_": f"{GEOMETRY}.CenterCrops", "short_side": short_side, "short_side_ratio": None, "crops": 1}
    stages = dict.fromkeys(("temporal", "rand_augment", "color", "erasing", "mixing"))
    config = migrate(
        {
            "name": name,
            "clip": chosen,
            "model": to_dict(cfg.model),
            "augmentation": {"train": train, "eval": crops, **stages},
            "loss": LOSS,
        },
        name,
    )
    put_published(config)
    return config


def load_published(
    config: DictConfig, cfg: DictConfig, sources: Sequence[str], ranks: "Ranks", console: "Console"
) -> "tuple[VideoClassifier, Sequence[str]]":
    """The model of `config` with published weights, which the options in `cfg` choose, and the names of its classes."""
    from vidtrain.build import parts as build
    from vidtrain.data.sources.labels import class_list
    from vidtrain.models.weights.files import locate
    from vidtrain.models.weights.loading import load_pretrained, num_classes, published_classes

    paths = [locate(source, cfg.pretrained_revision) for source in sources]
    count = num_classes(sources, paths, build.model_without_memory(config))
    classes = published_classes(sources[-1], paths[-1])
    if cfg.classes is not None:
        try:
            classes = tuple(class_list(cfg.classes if isinstance(cfg.classes, str) else list(cfg.classes)))
        except UserError as error:
            raise UserError(f"classes={cfg.classes}: {error}; give a list, or a file with a name a line") from error
    if classes is None:
        raise UserError(
            f"pretrained={sources[-1]} does not name its {count} classes; give classes=FILE, with a name in each line"
        )
    if len(classes) != count:
        raise UserError(f"classes: {len(classes)} names for the {count} classes of {sources[-1]}")
    model = build.model(config, count, ranks)
    for source, path in zip(sources, paths, strict=True):
        report = load_pretrained(model, source, path, cfg.init_match)
        console.info("weights of " + "\n  ".join(report.lines()))
    return model, classes
