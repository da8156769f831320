"""Exports a trained model, or published weights, for other programs: ONNX, torch.export, safetensors, a model card.

python -m vidtrain.export checkpoint=outputs/motion/NAME
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.build.checkpoint_loader import (
    check_source,
    find_checkpoint,
    load_published,
    open_trained,
    published_config,
    run_of,
)
from vidtrain.config.references import to_settings
from vidtrain.config.renames import migrate
from vidtrain.config.schemas import FORMATS, PRETRAINING_FORMATS, ExportConfig
from vidtrain.config.targets import check_settings, check_targets
from vidtrain.errors import UserError
from vidtrain.files.folders import check_inside, check_writable

if TYPE_CHECKING:  # so that --help does not wait seconds for the import of torch
    from vidtrain.build.checkpoint_loader import LoadedCheckpoint
    from vidtrain.training.run import Console

# Keys of a checkpoint's configuration that exporting uses
USED = ("seed", "clip", "model", "loss", "augmentation.eval", "objective")


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg) + check_settings(cfg, ExportConfig) + check_source(cfg, ("model", "classes"))
    if cfg.pretrained is not None and cfg.calibrated:
        faults.append(("calibrated", "published weights have no calibration; a checkpoint may"))
    if cfg.pretrained is not None and cfg.card:
        faults.append(("card", "a model card needs a run's folder, and published weights have none"))
    if cfg.formats is not None and not cfg.formats and not cfg.card:
        known = [*FORMATS["choices"](), *PRETRAINING_FORMATS["choices"]()]
        faults.append(("formats", f"nothing to write: name at least one of {', '.join(known)}"))
    if cfg.formats is None or "onnx" in cfg.formats:
        from vidtrain.models.exporting import check_onnx

        try:
            check_onnx(cfg.opset)
        except UserError as error:
            key = "opset" if "opset" in str(error) else "formats"
            if key == "opset" or cfg.formats is not None:  # formats=null may choose others
                faults.append((key, str(error)))
    return faults


def export(cfg: DictConfig) -> None:
    import torch

    from vidtrain.app.check import try_clip
    from vidtrain.build import parts as build
    from vidtrain.evaluation.calibrated import STORED, find_calibration
    from vidtrain.evaluator.report import apply_to
    from vidtrain.models.classifier import VideoClassifier
    from vidtrain.models.exporting import check_onnx
    from vidtrain.models.weights.files import as_sources
    from vidtrain.runs.export import chosen_formats, export_model, model_spec, recorded_metrics, write_model_card
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import Ranks

    console, ranks = make_console(is_main=True), Ranks(torch.device("cpu"))
    build.set_cpu_threads(None, ranks)
    folder, origin, calibration = None, dict[str, Any](), None
    if cfg.checkpoint is None:
        config = published_config(cfg, "_".join(sources := as_sources(cfg.pretrained)))
        try_clip(config)
        model, classes = load_published(config, cfg, sources, ranks, console)
        origin = {"weights": {"pretrained": sources}, "metrics": None}
        out = Path("outputs/export") / re.sub(r"[^\w.-]+", "_", config.name)
    else:
        path = find_checkpoint(cfg.checkpoint)
        trained = open_trained(path, cfg.trust_targets, pretraining=True)
        trained.check_computed(USED, {}, cfg)
        if trained.weights is None:
            raise UserError(f"{path} is already exported; name the run or the checkpoint that it was made from")
        if trained.is_pretraining:
            return _publish(cfg, trained, console)
        folder, config = run_of(path), migrate(trained.config, str(path))
        loaded, classes = trained.model(config, ranks), trained.classes
        assert isinstance(loaded, VideoClassifier)  # a graph is refused above
        model = loaded
        calibration = find_calibration(path, None, STORED, cfg.calibrated)
        origin = {"weights": {"checkpoint": str(path)}, **recorded_metrics(folder, path.name)}
        out = folder / "export" if folder else Path("outputs/export") / path.stem
    if folder is not None and cfg.out is None:
        check_inside(out, folder)
    settings, out, spec = to_settings(cfg, ExportConfig), Path(cfg.out or out), model_spec(config)
    settings.formats = chosen_formats(cfg.formats, FORMATS, "a classifier")
    if "onnx" in settings.formats:
        check_onnx(cfg.opset)
    check_writable(out)
    apply_to(calibration, spec.fusion, spec.protocol, console)
    rest = (settings, out, origin, console, calibration)
    card = export_model(spec, model, classes, *rest) if settings.formats else None
    if cfg.card or (cfg.card is None and folder is not None):
        if folder is None or not (folder / "summary.json").is_file():
            raise UserError(
                f"card=true: a model card needs a finished run, and {cfg.checkpoint} is in none; set card=false"
            )
        console.info(f"model card {write_model_card(folder, out, spec.settings, card)}")
    console.info(f"all files are in {out}")


def _publish(cfg: DictConfig, trained: "LoadedCheckpoint", console: "Console") -> None:
    """Exports the network of a pretraining run in the layouts of published files."""
    from vidtrain.runs.export import chosen_formats
    from vidtrain.runs.publish import pretrained_network, publish

    if cfg.precision != "fp32":
        raise UserError(f"precision={cfg.precision}: pretrained networks are exported as fp32; leave it out")
    if cfg.calibrated:
        raise UserError("calibrated=true: a pretrained network has no calibration; leave it out")
    assert trained.weights is not None
    folder, config = run_of(trained.source), migrate(trained.config, str(trained.source))
    formats = chosen_formats(cfg.formats, PRETRAINING_FORMATS, "a pretrained network")
    out = Path(cfg.out or (folder / "export" if folder else Path("outputs/export") / trained.source.stem))
    if folder is not None and cfg.out is None:
        check_inside(out, folder)
    check_writable(out)
    model = pretrained_network(config, trained.weights, str(trained.source))
    publish(model, config, formats, out, trained.source, folder, console)


def main() -> None:
    launch("export", export, check)


if __name__ == "__main__":
    main()
