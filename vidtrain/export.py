"""Exports a trained model, or published weights, for other programs: ONNX, torch.export, safetensors, a model card.

python -m vidtrain.export checkpoint=outputs/motion/NAME
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from vidtrain.app.launch import launch
from vidtrain.build.checkpoint_loader import find_checkpoint, open_trained
from vidtrain.config.published import STRIDES, published_clips, put_published
from vidtrain.config.references import settled
from vidtrain.config.renames import LOSS, migrate
from vidtrain.config.schemas import ExportSettings
from vidtrain.config.targets import check_targets
from vidtrain.config.trust import with_references
from vidtrain.errors import UserError
from vidtrain.files.folders import check_inside

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from torch import nn


SETTINGS = ("formats", "input", "precision", "opset", "max_difference", "card")
GEOMETRY = "vidtrain.data.augment.geometry"


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg)
    if (cfg.checkpoint is None) == (cfg.pretrained is None):
        faults.append(
            ("checkpoint", "one of checkpoint=RUN and pretrained=WEIGHTS must be given, and not both")
        )
        return faults
    if cfg.checkpoint is not None:
        given = [key for key in ("model", "classes") if cfg[key] is not None]
        given += [f"clip.{key}" for key in cfg.clip if cfg.clip[key] is not None]
        faults += [(key, "a checkpoint carries its own; this is for pretrained=WEIGHTS") for key in given]
        try:
            find_checkpoint(cfg.checkpoint)
        except UserError as error:
            faults.append(("checkpoint", str(error)))
    elif cfg.model is None:
        faults.append(("model", "must be chosen for published weights: model=OPTION"))
    elif cfg.card:
        faults.append(("card", "a model card is made of a run's folder, and published weights have none"))
    if not cfg.formats and not cfg.card:
        faults.append(("formats", "nothing to write: name at least one of onnx, torch_export, safetensors"))
    from vidtrain.runs.export import check_settings

    return faults + check_settings(settings_of(cfg))


def settings_of(cfg: DictConfig) -> ExportSettings:
    settings: dict[str, Any] = {key: cfg[key] for key in SETTINGS}
    settings["formats"] = list(cfg.formats) if cfg.formats else cfg.formats
    return ExportSettings(**settings)


def export(cfg: DictConfig) -> None:
    import torch

    from vidtrain.build import parts as build
    from vidtrain.runs.export import export_model
    from vidtrain.tracking.console import make_console
    from vidtrain.training.ranks.distributed import Ranks

    console = make_console(is_main=True)
    ranks = Ranks(torch.device("cpu"))
    build.set_cpu_threads(None, ranks)
    if cfg.checkpoint is None:
        config, model, classes, origin, out = published(cfg, console, ranks)
        folder = None
    else:
        path = find_checkpoint(cfg.checkpoint)
        trained = open_trained(path, cfg.trust_targets)
        trained.check_computed(("seed", "clip", "model", "loss", "augmentation.eval"), {}, cfg)
        if trained.weights is None:
            raise UserError(f"{path} is exported already; name the run or the checkpoint that it is from")
        folder = run_of(path)
        config = migrate(trained.config, str(path))
        model, classes = trained.model(config, ranks), trained.classes
        from vidtrain.runs.export import recorded_metrics

        origin = {"weights": {"checkpoint": str(path)}} | recorded_metrics(folder, path.name)
        out = folder / "export" if folder else Path("outputs/export") / path.stem
    settings, out = settings_of(cfg), Path(cfg.out or out)
    from vidtrain.files.folders import check_writable

    if folder is not None and cfg.out is None:
        check_inside(out, folder)
    check_writable(out)
    card = None
    if settings.formats:
        card = export_model(config, model, classes, settings, out, origin, console)
    if cfg.card or (cfg.card is None and folder is not None):
        if folder is None or not (folder / "summary.json").is_file():
            raise UserError(
                f"card=true: a model card is made of a finished run, and {cfg.checkpoint} lies in none; say card=false"
            )
        from vidtrain.reports.model_card import write_model_card

        described = with_references(settled(config))
        console.info(f"model card {write_model_card(folder, out, described, card)}")
    console.info(f"everything lies in {out}")


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, where it still lies there."""
    folder = checkpoint.resolve().parent.parent
    return folder if (folder / "run.json").is_file() else None


# --- published weights ------------------------------------------------------------------------------------


def published(
    cfg: DictConfig, console: Any, ranks: Any
) -> tuple[DictConfig, "nn.Module", Sequence[str], dict, Path]:
    """Published weights in the chosen model: configuration, model, class names, origin, and a folder for them."""
    import torch

    from vidtrain.build import parts as build
    from vidtrain.models.weights.files import as_sources, locate
    from vidtrain.models.weights.loading import load_pretrained, num_classes, published_classes

    sources = as_sources(cfg.pretrained)
    config = published_config(cfg, "_".join(sources))
    with torch.device("meta"):
        shape_only = build.instantiate_component(config.model, num_classes=2)
    paths = [locate(each, cfg.pretrained_revision) for each in sources]
    count = num_classes(sources, paths, shape_only)
    named = class_names(cfg.classes) or published_classes(sources[-1], paths[-1])
    if named is None:
        raise UserError(
            f"pretrained={sources[-1]} does not name its {count} classes; give classes=FILE, with a name in each line"
        )
    if len(named) != count:
        raise UserError(f"classes: {len(named)} names for the {count} classes of {sources[-1]}")
    model = build.model(config, count, ranks)
    for source, path in zip(sources, paths, strict=True):
        first, *rest = load_pretrained(model, source, path, cfg.init_match).lines()
        console.info("weights of " + "\n  ".join([first, *rest]))
    out = Path("outputs/export") / re.sub(r"[^\w.-]+", "_", config.name)
    return config, model, named, {"weights": {"pretrained": sources}, "metrics": None}, out


def published_config(cfg: DictConfig, name: str) -> DictConfig:
    """A run's configuration that says how published weights see clips: as the model option has it, but for what the
    user says otherwise. Raises `UserError` for what neither tells."""
    from vidtrain.app.check import try_clip

    clip = cast(dict[str, Any], OmegaConf.to_container(cfg.clip))
    given = {key: value for key, value in clip.items() if value is not None}
    known = published_clips(cfg) | given
    short_side = given.pop("short_side", known.get("short_side"))
    absent = [f"clip.{key}" for key in ("frames", "size", "mean", "std") if key not in known]
    if known.keys().isdisjoint(STRIDES) and known.get("sampling") != "uniform":
        absent.append("a stride, such as clip.frame_step=4")
    if absent:
        raise UserError(f"the model does not tell the clips that {name} is for: give {', '.join(absent)}")
    stages = dict.fromkeys(("temporal", "rand_augment", "color", "erasing", "mixing"))
    geometry = {
        "_target_": f"{GEOMETRY}.CenterCrops",
        "short_side": short_side,
        "short_side_ratio": None,
        "crops": 1,
    }
    train = {"_target_": f"{GEOMETRY}.ShortSideCrop", "short_side_ratio": [1.0, 1.0], "flip": 0.0}
    config = migrate(
        {
            "name": name,
            "clip": given,
            "model": OmegaConf.to_container(cfg.model),
            "augmentation": {"train": train, "eval": geometry, **stages},
            "loss": LOSS,
        },
        name,
    )
    put_published(config)
    try_clip(config)
    return config


def class_names(given: Any) -> list[str] | None:
    """Names as a list, or of a file with one in each line; None where none are given."""
    from vidtrain.data.sources.labels import class_list

    if given is None:
        return None
    try:
        return list(class_list(given if isinstance(given, str) else list(given)))
    except UserError as error:
        raise UserError(f"classes={given}: {error}; give a list, or a file with a name a line") from error


def main() -> None:
    launch("export", export, check)


if __name__ == "__main__":
    main()
