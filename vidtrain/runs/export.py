"""Exports a model in the requested formats, with a card.json for programs and a model card for people."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vidtrain import __version__
from vidtrain.build import parts as build
from vidtrain.config.references import settled, to_dict, with_published
from vidtrain.config.schemas import ExportSettings
from vidtrain.config.trust import with_references
from vidtrain.data.augment.geometry import EvalGeometry, SquashedFrame, WholeFrame
from vidtrain.errors import UserError
from vidtrain.evaluation.calibrated import Calibration
from vidtrain.evaluation.views import probabilities
from vidtrain.files.atomic import read_json, strict_json, write_json_atomic, write_text_atomic
from vidtrain.files.escaping import is_utf8, legend_of, masked_values, read_records
from vidtrain.models import exporting
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.exporting import INPUT_NAME, OUTPUT_NAMES, OnnxClassifier
from vidtrain.models.lora import adapter_parameters, merge_adapters
from vidtrain.models.weights import CARD_FORMAT, CARD_KEY
from vidtrain.reports.pages import METRIC_TITLES, MODEL_CARD, render, warn_of_failure
from vidtrain.training.run import Console

FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "model.safetensors"}
GRAPHS = ("onnx", "torch_export")
# settings of `clip` that a card holds
CLIP_KEYS = (
    *("frames", "frame_step", "fps", "duration", "sampling", "overlap", "short_video_policy", "frame_order"),
    "eval_clips",
)


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to use a trained model without its configuration, in plain values.

    `settings` is the whole configuration with resolved references, except those to environment variables. `config` is
    the same with unresolved references, without keys that have no value.
    """

    name: str
    clip: Mapping[str, Any]  # settings of its clips
    size: tuple[int, int]  # (height, width) of its clips
    geometry: EvalGeometry  # cuts crops out of frames
    fusion: str
    independent: bool  # whether a sigmoid scores each class by itself
    protocol: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]


def model_spec(cfg: DictConfig) -> ModelSpec:
    # The configuration of published weights has no dataset, optimizer, ...
    present = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if not OmegaConf.is_missing(cfg, key)])
    return ModelSpec(
        name=cfg.name,
        clip=to_dict(cfg.clip, resolve=True),
        size=build.clip_size(cfg),
        geometry=build.instantiate_component(cfg.augmentation.eval),
        fusion=cfg.model.fusion,
        independent=build.instantiate_component(cfg.loss).independent,
        protocol=build.protocol_text(cfg, cfg.model.fusion),
        settings=with_references(settled(cfg)),
        config=masked_values(with_references(to_dict(with_published(present)))),
    )


def check_geometry(geometry: EvalGeometry, settings: ExportSettings) -> None:
    """Raises `UserError` if a graph is requested and clips have the size of their video: a graph has one size."""
    graphs = [name for name in settings.formats or () if name in GRAPHS]
    if graphs and isinstance(geometry, WholeFrame):
        raise UserError(
            f"the model is evaluated on whole frames of any size, but {' and '.join(graphs)} need a fixed size: set "
            "formats=[safetensors]"
        )


def chosen_formats(formats: Sequence[str] | None, known: Mapping[str, Any], what: str) -> list[str]:
    """The `formats`, or all choices of the setting `known` if None. Raises `UserError` for formats of another kind of
    model; `what` names this kind."""
    names = list(known["choices"]())
    wrong = [name for name in formats or () if name not in names]
    if wrong:
        raise UserError(f"formats: {', '.join(wrong)} is not for {what}, which has {', '.join(names)}")
    return names if formats is None else list(formats)


def export_run(
    settings: ExportSettings,
    spec: ModelSpec,
    model: VideoClassifier,
    classes: Sequence[str],
    folder: Path,
    console: Console,
) -> None:
    """Exports the best checkpoint of a finished run, whose weights `model` has, into export/ of its `folder`."""
    out, card = folder / "export", None
    if settings.formats:
        best = folder / "checkpoints" / "best.pt"
        origin = {"weights": {"checkpoint": str(best)}} | recorded_metrics(folder, best.name)
        card = export_model(spec, model, classes, settings, out, origin, console)
    if settings.card:
        what = f"the model card of {folder}"
        path = warn_of_failure(what, lambda: write_model_card(folder, out, spec.settings, card), console)
        if path is not None:
            console.info(f"model card {path}")


def export_model(
    spec: ModelSpec,
    model: VideoClassifier,
    classes: Sequence[str],
    settings: ExportSettings,
    out: Path,
    origin: Mapping[str, Any],
    console: Console,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Writes `model`, which `spec` describes, into the folder `out`; returns the card that it writes there. If a
    `calibration` is given, the graphs compute calibrated probabilities.

    `origin` holds the source of the weights and their metrics. Adapters are merged in the files; `model` is not
    changed. Raises `UserError` if a format cannot express the model, or if the outputs of a graph differ too much from
    PyTorch's.
    """
    check_geometry(spec.geometry, settings)
    if not is_utf8(str(out)):
        raise UserError(
            f"nothing can be exported into {out}: the name is not UTF-8, which the libraries that write files need; "
            "use the export program with another out="
        )
    out.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).cpu().eval()
    if adapter_parameters(model):
        merge_adapters(model)
    card = make_card(spec, model, classes, settings, origin)
    card["calibration"] = None if calibration is None else dict(calibration.record)
    card_json = strict_json(card)  # stored in each file too, so that a file that was copied alone can be used
    files: dict[str, Any] = {}
    formats = settings.formats or []
    if "safetensors" in formats:
        path = out / FILES["safetensors"]
        exporting.save_weights(model, path, settings.precision, {CARD_KEY: card_json})
        files["safetensors"] = {"file": path.name, "bytes": path.stat().st_size}
        console.info(f"{path}: reads back the same, {_megabytes(path)}")
    graphs = [name for name in GRAPHS if name in formats]
    if graphs:
        files |= _write_graphs(spec, model, settings, graphs, out, card_json, console, calibration)
    card["files"] = files
    write_json_atomic(out / "card.json", card)
    return card


def _write_graphs(
    spec: ModelSpec,
    model: VideoClassifier,
    settings: ExportSettings,
    graphs: Sequence[str],
    out: Path,
    card_json: str,
    console: Console,
    calibration: Calibration | None,
) -> dict[str, Any]:
    clip_shape = (spec.clip["frames"], *spec.size)
    scaling = None
    if calibration is not None:
        scaling = torch.tensor(calibration.scaling.scale), torch.tensor(calibration.scaling.bias)
    predict = partial(probabilities, fusion=spec.fusion, independent=spec.independent, scaling=scaling)
    mean, std = list(spec.clip["mean"]), list(spec.clip["std"])
    make = partial(exporting.ClipGraph, model, predict, mean, std, settings.input)
    expected = exporting.reference_outputs(make(), clip_shape)
    limit = settings.max_difference or exporting.MAX_DIFFERENCE[settings.precision]
    program = exporting.trace(make(precision=settings.precision), clip_shape)
    files = {}
    for name in graphs:
        path = out / FILES[name]
        console.info(f"writing {path}; a deep model takes minutes")
        facts: dict[str, Any] = {"file": path.name}
        if name == "onnx":
            exporting.save_onnx(program, path, settings.opset, {CARD_KEY: card_json})
            facts["opset"] = settings.opset
        else:
            exporting.save_program(program, path, card_json)
        try:
            run = OnnxClassifier(path, fusion="").run if name == "onnx" else exporting.program_runner(path)
            difference = exporting.difference(run, expected)
            exporting.check_difference(difference, str(path), limit)
        except UserError:
            path.unlink()  # only checked files stay
            raise
        console.info(f"{path}: {difference}, {_megabytes(path)}")
        files[name] = facts | {"bytes": path.stat().st_size, "difference": asdict(difference)}
    return files


def make_card(
    spec: ModelSpec,
    model: VideoClassifier,
    classes: Sequence[str],
    settings: ExportSettings,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The card: what a program needs to use an exported file, as plain data."""
    uint8, joint = settings.input == "uint8", spec.fusion == "joint"
    pixels = "RGB, 0 to 255; the graph normalizes" if uint8 else "RGB / 255, minus mean, divided by std"
    return {
        "format": CARD_FORMAT,
        "name": spec.name,
        "model": {
            "encoder": type(model.encoder).__name__,
            "head": type(model.head).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "precision": settings.precision,
        },
        "classes": list(classes),
        "input": {
            "name": INPUT_NAME,
            "dtype": settings.input,
            "shape": ["videos", "views", 3, spec.clip["frames"], *spec.size],
            "meaning": pixels,
        },
        "outputs": {
            OUTPUT_NAMES[0]: ["videos", 1 if joint else "views", len(classes)],
            OUTPUT_NAMES[1]: ["videos", len(classes)],
        },
        "probabilities": "sigmoid" if spec.independent else "softmax",
        "preprocessing": _preprocessing(spec),
        "fusion": spec.fusion,
        "protocol": spec.protocol,
        **origin,
        "config": spec.config,
        "versions": {"vidtrain": __version__, "torch": str(torch.__version__)},
    }


def _preprocessing(spec: ModelSpec) -> dict[str, Any]:
    """How clips are made from a video: which frames are read, the short side to which they are scaled, and the size of
    the crop; a `squashed` frame is scaled to that size without a crop."""
    clip, geometry = spec.clip, spec.geometry
    short_side = None
    if not isinstance(geometry, SquashedFrame):
        ratio = None if isinstance(geometry, WholeFrame) else geometry.short_side_ratio
        short_side = geometry.short_side or round((ratio or 1) * min(spec.size))
    return {key: clip[key] for key in CLIP_KEYS} | {
        "short_side": short_side,
        "whole_frame": isinstance(geometry, WholeFrame),
        "squashed": isinstance(geometry, SquashedFrame),
        "crops": geometry.crops,
        "height": spec.size[0],
        "width": spec.size[1],
        "interpolation": clip["interpolation"],
        "resize": clip["resize"],
        "sample_aspect": clip["sample_aspect"],
        "mean": list(clip["mean"]),
        "std": list(clip["std"]),
    }


def recorded_metrics(folder: Path | None, checkpoint: str) -> dict[str, Any]:
    """The metrics of the run's closing evaluation, if `checkpoint` is the evaluated one, best.pt."""
    if folder is None or checkpoint != "best.pt" or not (folder / "summary.json").is_file():
        return {"metrics": None}
    advice = (
        "an export records the run's metrics: export a copy of the checkpoint outside of the run's folder to omit them"
    )
    split = read_json(folder / "summary.json", advice, ["split"])["split"]
    report = read_json(folder / "eval" / split / "metrics.json", advice, ["coverage", "metrics"])
    return {"metrics": {"split": split, "coverage": report["coverage"], **report["metrics"]}}


def _megabytes(path: Path) -> str:
    beside = path.with_name(f"{path.name}.data")
    size = path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
    return f"{size / 1e6:.1f} MB"


# --- the model card of a finished run ---------------------------------------------------------------------
#
# After Mitchell et al. 2019, "Model cards for model reporting" (arXiv:1810.03993).

NEEDS = "a model card needs it"
CLASSES_SHOWN = 30
FEW = 10  # the card lists classes with fewer videos, as their numbers mean little
SETTINGS = (
    "optimizer", "schedule", "loss", "augmentation", "stage", "trainer.epochs", "trainer.batch_size",
    "trainer.accumulation", "trainer.precision", "trainer.ema", "trainer.clip_grad", "clip.train_clips", "seed",
)  # fmt: skip
PICTURES = {"curves.png": "Training curves", "confusion_{split}.png": "Confusion matrix on {split}"}


def write_model_card(run: Path, out: Path, config: Mapping[str, Any], exported: Mapping[str, Any] | None) -> Path:
    """Writes MODEL_CARD.md of the run folder `run` and its pictures into `out`; returns the card's path. `config` is
    the run's resolved configuration, `exported` the metadata of the exported files, or None. Raises `UserError` naming
    a file that is missing in the run folder."""
    out.mkdir(parents=True, exist_ok=True)
    split = _read(run / "summary.json")["split"]
    shown = []
    for pattern, title in PICTURES.items():
        picture = run / "plots" / pattern.format(split=split)
        if picture.is_file():  # runs with several labels a video have no confusion matrix
            for file in filter(Path.is_file, (picture, legend_of(picture))):
                shutil.copyfile(file, out / file.name)
            shown.append((title.format(split=split), picture.name))
    path = out / MODEL_CARD
    write_text_atomic(path, model_card(run, config, exported, shown))
    return path


def model_card(
    run: Path,
    config: Mapping[str, Any],
    exported: Mapping[str, Any] | None,
    pictures: Sequence[tuple[str, str]],
) -> str:
    """The card as text; `pictures` are (title, file name)."""
    summary = _read(run / "summary.json")
    evaluation, start, data = (
        run / place for place in (f"eval/{summary['split']}", "starting_point.json", "dataset.json")
    )
    by_class = read_records(evaluation / "per_class.csv", NEEDS)
    score = "f1" if "f1" in by_class[0] else list(by_class[0])[-1]
    return render(
        "model_card.md.jinja",
        config=config,
        summary=summary,
        evaluated=_read(evaluation / "metrics.json"),
        exported=exported,
        start=_read(start) if start.is_file() else None,
        data=_read(data) if data.is_file() else None,
        by_class=by_class,
        weakest_first=sorted(by_class, key=lambda row: _number(row[score])),
        few=[row for row in by_class if "support" in row and _number(row["support"]) < FEW],
        least=FEW,
        most_listed=CLASSES_SHOWN,
        titles=METRIC_TITLES,
        pictures=pictures,
        settings=_settings(config),
        run=run.name,
        run_id=_read(run / "run.json")["id"],
        git=_read(run / "git.json"),
        environment=_read(run / "environment.json"),
    )


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of `SETTINGS` that are set, as text."""
    settings = {}
    for key in SETTINGS:
        node: Any = config
        for name in key.split("."):
            node = node[name] if isinstance(node, Mapping) and name in node else None
        if node is not None:
            settings[key] = _spell(node)
    return settings


def _spell(node: object) -> str:
    """A component as its name with its values in brackets, such as `AdamW(lr=0.001)`; other values as text."""
    if isinstance(node, Mapping):
        inner = [f"{key}={_spell(value)}" for key, value in node.items() if key[0] != "_" and value is not None]
        kind = node["_target_"].rpartition(".")[2] if "_target_" in node else ""
        return f"{kind}({', '.join(inner)})"
    return f"[{', '.join(map(_spell, node))}]" if isinstance(node, list) else str(node)


def _number(cell: str) -> float:
    return float(cell) if cell else 0.0


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, NEEDS)
