"""What predict makes of a checkpoint: its configuration as the command line changes it, and what its model can show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from vidtrain.app.check import try_clip
from vidtrain.build import parts as build
from vidtrain.config.renames import migrate
from vidtrain.config.targets import check_targets, suggest
from vidtrain.data.augment.geometry import WholeFrame
from vidtrain.data.manifest.class_names import describe_alike, one_spelling
from vidtrain.errors import UserError
from vidtrain.models.heat_maps import kinds_of
from vidtrain.prediction.run import Predictor
from vidtrain.training.ranks.distributed import Ranks, autocast

# The program's option -> where the value stands in the configuration that the checkpoint carries
CHANGES = {
    "eval_clips": "clip.eval_clips",
    "crops": "augmentation.eval.crops",
    "fusion": "model.fusion",
    "batch_size": "trainer.eval_batch_size",
    "precision": "trainer.precision",
    "decode_timeout_s": "data.decode_timeout_s",
    "max_pixels": "data.max_pixels",
    "size_changes": "data.size_changes",
}
# What predicting uses of it; an exported file of published weights has no more
USED = ("clip", "model", "loss", "augmentation.eval")


def as_trained(config: Mapping[str, Any], cfg: DictConfig) -> DictConfig:
    """The configuration that a checkpoint carries, with what the command line changes of it."""
    trained = migrate(config, f"the checkpoint {cfg.checkpoint}")
    for option, place in CHANGES.items():
        if cfg[option] is not None:
            OmegaConf.update(trained, place, cfg[option], merge=False)
    trained.trainer.num_workers = cfg.num_workers  # of this machine, not of that which trained
    if cfg.windows.stride is not None and cfg.eval_clips is None and trained.model.fusion != "joint":
        trained.clip.eval_clips = 1  # clips of one window would show nearly the same
    return trained


def check_trained(trained: DictConfig, cfg: DictConfig) -> list[tuple[str, str]]:
    """The faults of what predicting uses of a checkpoint's configuration, as the command line changed it."""
    absent = [key for key in USED if OmegaConf.select(trained, key) is None]
    if absent:
        return [(key, "is not in the checkpoint, and nothing can be predicted without") for key in absent]
    faults = [fault for fault in check_targets(trained) if fault[0].startswith(USED)]
    if faults:
        return faults

    def geometry() -> None:
        build.instantiate_component(trained.augmentation.eval)(320, 240, build.clip_size(trained))

    def model() -> None:
        size = build.clip_size(trained)
        build.model_without_memory(trained).encoder.grid(trained.clip.frames, *size)

    trials = {"clip": lambda: try_clip(trained), "augmentation.eval": geometry, "model": model,
              "loss": lambda: build.instantiate_component(trained.loss)}  # fmt: skip
    for key, trial in trials.items():
        try:
            trial()
        except UserError as error:
            faults.append((key, str(error)))
    if cfg.windows.stride is not None and cfg.windows.length is None and trained.clip.sampling == "uniform":
        faults.append(
            (
                "windows.length",
                "must be given: the checkpoint's clips (clip.sampling=uniform) have no length of their own",
            )
        )
    return faults


def class_number(name: str | None, classes: Sequence[str], path: Path) -> int | None:
    """The number of the class that `heat_class` names. Raises `UserError` where the checkpoint at `path` lacks it."""
    if name is None:
        return None
    spelled = one_spelling(name)
    if spelled not in classes:
        hint = describe_alike([spelled], classes) or suggest(spelled, list(classes))
        raise UserError(f"heat_class={name} is no class of {path}{hint}")
    return classes.index(spelled)


def make_predictor(
    trained: DictConfig,
    model: nn.Module,
    transform: nn.Module,
    ranks: Ranks,
    heat: str | None,
    heat_class: int | None,
) -> Predictor:
    return Predictor(
        model=model,
        transform=transform,
        device=ranks.device,
        context=autocast(ranks, trained.trainer.precision),
        crops=build.instantiate_component(trained.augmentation.eval).crops,
        independent=build.instantiate_component(trained.loss).independent,
        heat=heat,
        heat_class=heat_class,
    )


def heat_kind(cfg: DictConfig, trained: DictConfig, model: nn.Module) -> tuple[str | None, str]:
    """Which heat map to draw, and why none. Raises `UserError` for one that the model does not have."""
    if not cfg.render or cfg.heat == "none":
        return None, f"heat={cfg.heat}"
    kinds = kinds_of(model, trained.clip.frames, *build.clip_size(trained))
    why = (
        "an exported graph gives logits alone; name the run or its checkpoint"
        if not hasattr(model, "encoder")
        else "the model's head sees one token, which has no place"
        if not kinds
        else "it needs an attentive pooler, and the model's head is another; say heat=grad_cam"
    )
    wanted = "grad_cam" if cfg.heat == "auto" and cfg.heat_class is not None else cfg.heat
    if wanted == "auto":
        return (kinds[0], "") if kinds else (None, why)
    if wanted not in kinds:
        raise UserError(f"heat={wanted} cannot be drawn: {why}")
    return wanted, ""


def check_graph(trained: DictConfig, model: nn.Module, path: Path) -> None:
    """Raises `UserError` for an exported graph that was made for other clips than are to be shown to it."""
    if not hasattr(model, "clip_shape"):
        return
    if isinstance(build.instantiate_component(trained.augmentation.eval), WholeFrame):
        raise UserError(f"{path} takes clips of one size, and its card asks for whole frames of any size")
    wanted = (3, trained.clip.frames, *build.clip_size(trained))
    if tuple(model.clip_shape) != wanted:
        raise UserError(
            f"{path} takes clips of {list(model.clip_shape)} (channels, frames, height, width), and its card says "
            f"{list(wanted)}: it was changed after it was exported; export it again"
        )


def heat_note(kind: str | None, model: nn.Module, heat_class: str | None, why_none: str) -> str:
    """What the colors of a sheet mean, with `{}` for the class where it is the most probable one."""
    if kind == "attention":
        pooler = model.head.pooler
        before = (
            f", after {len(pooler.blocks)} blocks of self-attention over all of them"
            if len(pooler.blocks)
            else ""
        )
        return (
            f"Heat: attention that the pooler gives to the tokens, the mean of its {pooler.num_heads} heads{before}. "
            "Below: the share of each time step in the clip's attention."
        )
    if kind == "grad_cam":
        # braces in a name would stand for something else
        named = "{}" if heat_class is None else heat_class.replace("{", "{{").replace("}", "}}")
        return (
            f"Heat: Grad-CAM, what in the encoder's last features speaks for {named}. Below: the share of each "
            "time step in the clip's heat."
        )
    return f"No heat map: {why_none}.".replace("{", "{{").replace("}", "}}")
