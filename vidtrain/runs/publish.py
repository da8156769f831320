"""Exports a pretrained network in the layouts of the method's original code and of transformers."""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from vidtrain import __version__
from vidtrain.build import parts as build
from vidtrain.config.references import to_dict
from vidtrain.errors import UserError
from vidtrain.files.atomic import read_json, write_json_atomic, write_text_atomic
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.dense_joint_embedding import LEVEL_NORMS, DenseJointEmbedding
from vidtrain.models.exporting import written_whole
from vidtrain.models.masked_models import JointEmbedding, MaskedModel
from vidtrain.models.weights.loading import load_pretrained
from vidtrain.models.weights.pretraining import LAYOUTS, Layout, layout_of
from vidtrain.models.weights.vit3d import under
from vidtrain.reports.pages import MODEL_CARD, render
from vidtrain.training import checkpoint
from vidtrain.training.run import Console

Levels = dict[str, Any]  # nested mapping of names to tensors
ALL, ENCODER = "all of it", "the encoder alone"  # the part of the network that a file holds


def pretrained_network(config: DictConfig, weights: Mapping[str, Tensor], source: str) -> MaskedModel:
    """Builds the network of a pretraining checkpoint. A frozen teacher is not exported, so a copy of the encoder takes
    its place. Raises `UserError` if the weights belong to another network."""
    encoder = build.instantiate_component(config.model.encoder)
    objective = config.objective.copy()
    has_teacher = objective.pop("teacher", None) is not None
    teacher = {"teacher": copy.deepcopy(encoder)} if has_teacher else {}
    model = build.instantiate_component(objective, encoder=encoder, **teacher)
    if _is_frozen(model):
        checkpoint.restore(model.encoder, under(weights, "encoder."), source)
        model.teacher.load_state_dict(model.encoder.state_dict())
        if isinstance(model, DenseJointEmbedding):  # the norms of levels belong to the encoder
            checkpoint.restore(model.head.norms, under(weights, LEVEL_NORMS["encoder"]), source)
            model.teacher_norms.load_state_dict(model.head.norms.state_dict())
    else:
        checkpoint.restore(model, weights, source)
    return model.eval()


def publish(
    model: MaskedModel,
    config: DictConfig,
    formats: Sequence[str],
    out: Path,
    checkpoint_file: Path,
    run: Path | None,
    console: Console,
) -> None:
    """Writes the encoder alone and the whole `model` into `out`, reads each file back, and writes the card. If the
    teacher is frozen, only the encoder is written. The card names `checkpoint_file`, from which `model` was loaded, and
    the results of `run` if it belongs to one. Raises `UserError` if a layout cannot express the network; no file
    stays."""
    files: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for format in formats:
        name = layout_of(model, format == "transformers")
        layout = LAYOUTS[name]
        parts = [] if _is_frozen(model) else [ALL]
        parts += [] if layout.encoder is None else [ENCODER]
        if not parts:
            raise UserError(
                f"formats: {name} has no place for a frozen teacher, nor for an encoder alone: set formats=[original]"
            )
        for part in parts:
            path = out / _file_name(format, part)
            try:
                _write(model, layout, part, path)
                difference = _read_back(model, part, path, name, build.clip_size(config))
            except UserError:  # only checked files stay
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                raise
            console.info(f"{path}: {part}, as {name}; read back its outputs differ by {difference:.1e}")
            files[path.name] = {"layout": name, "holds": part, "difference": difference}
    card = {
        "name": config.name,
        "network": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in model.encoder.parameters()),
        "encoder": to_dict(config.model.encoder, resolve=True),
        "objective": to_dict(config.objective, resolve=True),
        "clip": to_dict(config.clip, resolve=True),
        "weights": {"checkpoint": str(checkpoint_file)},
        "files": files,
        "versions": {"vidtrain": __version__, "torch": str(torch.__version__)},
    }
    write_json_atomic(out / "card.json", card)
    summary = None if run is None else run / "summary.json"
    results = None
    if summary is not None and summary.is_file():
        results = read_json(summary, "the card shows the run's results", ["steps", "protocol"])
    write_text_atomic(
        out / MODEL_CARD, render("pretraining_card.md.jinja", card=card, results=results, dataset=config.dataset)
    )
    console.info(f"model card {out / MODEL_CARD}")


def _is_frozen(model: MaskedModel) -> bool:
    return isinstance(model, JointEmbedding) and model.momentum == 1


def _file_name(format: str, part: str) -> str:
    """The name of a file (original format) or of a folder (transformers)."""
    if format == "original":
        return "pretraining.pth" if part == ALL else "encoder.pth"
    return "transformers" if part == ALL else "transformers_encoder"


def _write(model: MaskedModel, layout: Layout, part: str, path: Path) -> None:
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in layout.tables}
    tensors = layout.revert(model.state_dict() | buffers)
    if part == ENCODER:
        assert layout.encoder is not None  # checked by the caller
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(layout.encoder)}
    if layout.config is None:
        with written_whole(path) as temporary:
            torch.save(_levels(tensors), temporary)
        return
    path.mkdir(exist_ok=True)
    names = {ALL: layout.classes[0], ENCODER: layout.classes[-1]}
    config = layout.config(model) | {"architectures": [names[part]], "torch_dtype": "float32"}
    (path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with written_whole(path / "model.safetensors") as temporary:
        contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, {"format": "pt"})  # transformers requires this metadata
        temporary.chmod(0o644)


def _levels(tensors: Mapping[str, Tensor]) -> Levels:
    """Tensors nested as in the original files: VideoMAE has all in `model`, V-JEPA each network under its name. If only
    the target encoder is there, it is stored as `encoder` too, as some code reads that."""
    parts = {"encoder": "encoder.", "predictor": "predictor.", "target_encoder": "target_encoder."}
    if not any(name.startswith(parts["target_encoder"]) for name in tensors):
        return {"model": dict(tensors)}
    levels = {part: inner for part, prefix in parts.items() if (inner := under(tensors, prefix))}
    return {"encoder": levels["target_encoder"]} | levels


@torch.no_grad()
def _read_back(model: MaskedModel, part: str, path: Path, name: str, size: tuple[int, int]) -> float:
    """Reads the network back from `path`, and returns the largest difference of its outputs for a clip, relative to the
    largest output. Raises `UserError` if the layout does not allow the network's settings."""
    clip = torch.randn(1, 3, model.encoder.num_frames, *size, generator=torch.Generator().manual_seed(0))
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    if isinstance(before, JointEmbedding) and name.endswith("transformers"):
        before.encoder.load_state_dict(
            before.teacher.state_dict()
        )  # transformers' layout holds only the target encoder
    encoder = EncoderWithHead()
    encoder.encoder, encoder.head = after.feature_encoder(), nn.Identity()
    network = after if part == ALL else encoder
    for parameter in network.parameters():
        parameter.zero_()
    try:
        report = load_pretrained(network, str(path), path, 1.0)
    except UserError as error:
        raise UserError(f"formats: a network with these settings has no place in {name}: {error}") from error
    absent = [name for name in network.state_dict() if name.startswith("head.") and name not in report.loaded]
    if absent:
        why = "; ".join(dict.fromkeys(report.left_out.values()))
        raise UserError(f"formats: {type(model.head).__name__} has no place in {name}: {why}")
    if part == ENCODER:
        outputs = [before.feature_encoder()(clip)], [encoder.encoder(clip)]
    else:
        after.begin(report.loaded)
        masks = model.sample_masks(clip, torch.zeros(1, dtype=torch.int64))
        outputs = (
            [*before.errors(clip, masks), before.losses(clip, masks)],
            [*after.errors(clip, masks), after.losses(clip, masks)],
        )
    pairs = zip(*outputs, strict=True)
    return max(float((output - again).abs().max() / output.abs().max()) for output, again in pairs)
