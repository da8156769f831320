"""The adapters of a run's encoder (LoRA), and the base of its checkpoints: the frozen weights that they leave out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vidtrain.build.parts import StartingPoint, pluralize
from vidtrain.models.classifier import EncoderWithHead, VideoClassifier
from vidtrain.models.lora import Adapters, Base, BaseFile, adapter_parameters
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import Console, LoraSettings, PhaseSettings
from vidtrain.training.stages import lora_of, never_trained


def adapters_of(lora: LoraSettings) -> Adapters:
    targets = None if lora.targets is None else tuple(lora.targets)
    return Adapters(lora.rank, lora.alpha, lora.dropout, targets)


def start_adapters(
    model: VideoClassifier,
    phases: Mapping[str, PhaseSettings],
    start: StartingPoint,
    seed: int,
    ranks: Ranks,
    console: Console,
) -> Adapters | None:
    """Adds the adapters that `phases` train to the encoder of a new run, and returns them; None if they train none.

    Weights that were loaded from a file and stay frozen in every phase are the base: checkpoints leave them out, and
    name the file with its SHA-256. Without such weights there is no base, and checkpoints hold all weights.
    """
    lora = lora_of(phases)
    if lora is None:
        return None
    adapters = adapters_of(lora)
    layers = adapters.add_to(model, seed)
    count = sum(parameter.numel() for parameter in adapter_parameters(model))
    line = f"lora: adapters of rank {lora.rank} in {pluralize(len(layers), 'layer')}, {count / 1e6:.3g} M parameters"
    frozen = never_trained(model, phases)
    sources = [source for source in start.sources if frozen & source.loaded]
    if not sources:
        console.info(f"{line}; no frozen weights are from a file, so checkpoints hold all weights")
        return adapters
    from vidtrain.models.weights.files import content_hash, stamp  # imports all formats, which takes seconds

    names = frozen & frozenset().union(*(source.loaded for source in sources))
    files = ranks.on_main(
        lambda: [
            BaseFile(source.name, str(source.path.absolute()), content_hash(source.path), stamp(source.path))
            for source in sources
        ]
    )
    file_list = ", ".join(f"{file.path} (sha256 {file.sha256})" for file in files)
    console.info(f"{line}; checkpoints hold only the trained weights, and name the file of the others: {file_list}")
    return replace(adapters, base=Base(tuple(files), tuple(name for name in model.state_dict() if name in names)))


def restore(model: EncoderWithHead, adapters: Adapters | None, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads the `weights` of the checkpoint at `path` into a new model. If the checkpoint's model has `adapters`, it
    adds them and loads their base first.

    Raises `UserError` if a file of the base is absent or has changed, and for weights that do not fit.
    """
    if adapters is None:
        checkpoint.restore(model, weights, str(path))
        return
    if adapters.base is not None:
        from vidtrain.models.weights.loading import load_base

        load_base(model, adapters.base, path)
    adapters.add_to(model)
    checkpoint.restore(model, weights, str(path), adapters.left_out)
