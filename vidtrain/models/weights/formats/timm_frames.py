"""timm's image models by their own names, for the encoder that takes them frame by frame."""

import re
from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.weights.format import Converted, Format, Weights
from vidtrain.models.weights.formats.timm_vit import architecture

OURS = "encoder.network."
PREFIXES = ("", "model.", "state_dict.", "module.")
HEAD = re.compile(r"(attn_pool|head\.|fc_norm\.|aux_head\.)")
TABLE = "relative_position_bias_table"


def _recognizes(weights: Weights) -> bool:
    """Whether timm is named, or these look like an image model: kernels of two dimensions, and none of three."""
    dims = {tensor.ndim for tensor in weights.tensors.values()}
    return weights.source.startswith("timm:") or (4 in dims and 5 not in dims)


def _convert(weights: Weights, model: nn.Module) -> Converted:
    network = model.encoder.network
    own = network.state_dict()
    prefix = max(PREFIXES, key=lambda each: sum(each + name in weights.tensors for name in own))
    name = architecture(weights)
    found = Converted(requires={} if name is None else {"encoder.backbone": name})
    for theirs, tensor in weights.tensors.items():
        bare = theirs.removeprefix(prefix)
        if not theirs.startswith(prefix):
            found.left_out[theirs] = "not of the model"
        elif bare in own:
            found.tensors[OURS + bare] = tensor
            if tensor.shape != own[bare].shape:
                _fit(found, bare, tensor, own[bare], network)
        elif bare.startswith(_classifiers(network)):
            found.left_out[theirs] = "answers for images; the head here is another"
        elif HEAD.match(bare):
            found.left_out[theirs] = f"not in the features that are used ({model.encoder.features})"
        else:
            found.unexpected.append(theirs)
    return found


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers that timm takes away with num_classes=0, such as fc or head.fc."""
    names = network.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names or ()))


def _fit(found: Converted, name: str, tensor: Tensor, own: Tensor, network: nn.Module) -> None:
    """Positions of another image size; what else differs in shape stays, and is reported as such."""
    sizes = f"{list(tensor.shape)} resized to {list(own.shape)}"
    if name == "pos_embed" and tensor.ndim == 3:
        grid = network.patch_embed.grid_size
        prefix = own.shape[1] - grid[0] * grid[1]  # some give positions to patches alone
        found.tensors[OURS + name] = resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=prefix)
        found.resized[OURS + name] = f"positions {sizes}"
    elif name.endswith(TABLE):
        window = network.get_submodule(name.rpartition(".")[0]).window_size
        found.tensors[OURS + name] = resize_rel_pos_bias_table(tensor, window, tuple(own.shape))
        found.resized[OURS + name] = f"relative positions {sizes}"


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(OURS): each for name, each in tensors.items() if name.startswith(OURS)}


TIMM_FRAMES = Format(
    name="image model, timm",
    encoder=TimmFrames,
    models="model=timm_frames model.encoder.backbone=NAME, with timm's name of the model",
    recognizes=_recognizes,
    convert=_convert,
    revert=_revert,
)
