"""VideoMAE as transformers saves it: for classification, for pretraining, or the base model.

On the hub: MCG-NJU/videomae-{small,base,large}, -huge, and fine-tuned MCG-NJU/videomae-*-finetuned-kinetics, -ssv2.

A classifier there is one of two: over the mean of the tokens, as the original (`use_mean_pooling`), or over the first
token after the pretraining's last norm, which is what fine-tuning a pretrained folder with transformers gives.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from vidtrain.models.linear_heads import MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Converted, Format, Renaming, Weights
from vidtrain.models.weights.formats.videomae import JOINED_BIAS, REST, leave_out_norm
from vidtrain.models.weights.formats.vit3d import (
    fit_patches,
    heads_of,
    join,
    leave_out_head,
    one_of,
    set_aside,
    split,
)

PREFIX = "videomae."
PARTS = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
KEYS = PARTS[1]  # have no bias
# As transformers saves the biases, and as its models name them
BIASES = {
    "attention.attention.q_bias": "attention.attention.query.bias",
    "attention.attention.v_bias": "attention.attention.value.bias",
}
LAYER, BLOCK = "encoder.layer.{n}", "encoder.blocks.{n}"
NAMES = Renaming(
    [
        ("embeddings.patch_embeddings.projection", "encoder.patch_embed.proj"),
        (f"{LAYER}.attention.qkv", f"{BLOCK}.attn.qkv"),
        (f"{LAYER}.attention.output.dense", f"{BLOCK}.attn.proj"),
        (f"{LAYER}.intermediate.dense", f"{BLOCK}.mlp.fc1"),
        (f"{LAYER}.output.dense", f"{BLOCK}.mlp.fc2"),
        (f"{LAYER}.layernorm_before", f"{BLOCK}.norm1"),
        (f"{LAYER}.layernorm_after", f"{BLOCK}.norm2"),
        ("layernorm", "encoder.norm"),
        ("fc_norm", "head.fc_norm"),
        ("classifier", "head.linear"),
    ]
)


def _recognizes(weights: Weights) -> bool:
    base = {name.removeprefix(PREFIX) for name in weights.tensors}
    wanted = {"embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layernorm_before.weight"}
    patches = [
        each for name, each in weights.tensors.items() if name.endswith("patch_embeddings.projection.weight")
    ]
    return wanted <= base and patches[0].ndim == 5


def _convert(weights: Weights, model: nn.Module) -> Converted:
    kept, left_out = set_aside(weights.tensors, REST)
    tensors = {_current(name.removeprefix(PREFIX)): each for name, each in kept.items()}
    found = NAMES.convert(join(tensors, "attention.qkv", PARTS, no_bias=(KEYS,)))
    found.left_out |= left_out
    fit_patches(found, model.encoder)
    for name in found.tensors:
        if ".qkv." in name:
            found.changed[name] = JOINED_BIAS if name.endswith("bias") else "queries, keys and values joined"

    # the original's, which the weights were trained with
    epsilons = [1e-6]
    found.requires = heads_of(found) | {"encoder.positions": "sincos_1d", "encoder.activation": "gelu"}
    if weights.config is not None:
        epsilons.append(
            weights.config["layer_norm_eps"]
        )  # transformers computes with this one, 1e-12 on the hub
        found.requires |= {
            "encoder.num_heads": weights.config["num_attention_heads"],
            "encoder.activation": weights.config["hidden_act"],
            "encoder.image_size": weights.config["image_size"],
        }
    found.requires["encoder.norm_eps"] = one_of(model.encoder.norm_eps, epsilons)
    _settle_head(found, model)
    return found


def _settle_head(found: Converted, model: nn.Module) -> None:
    if not isinstance(model.head, MeanPoolClassifier):
        reason = f"a linear classifier, and the model's head is {type(model.head).__name__}"
        leave_out_head(found, NAMES, reason)
    elif "head.fc_norm.weight" in found.tensors:
        # transformers has its default here, 1e-5, and the original 1e-6
        found.requires |= {"encoder.final_norm": False, "head.pool": "mean", "head.norm": True}
        found.requires["head.norm_eps"] = one_of(model.head.norm_eps, (1e-6, 1e-5))
    elif "head.linear.weight" in found.tensors and "encoder.norm.weight" in found.tensors:
        found.requires |= {"encoder.final_norm": True, "head.pool": "first", "head.norm": False}
    leave_out_norm(found, model, f"{PREFIX}layernorm")


def _current(name: str) -> str:
    """The name of a bias as transformers' models have it, where it is as the files have it."""
    for old, new in BIASES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as in the files of the hub and of `save_pretrained`."""
    found = split(NAMES.revert(tensors), "attention.qkv", PARTS, no_bias=(KEYS,))
    published = {}
    for name, tensor in found.items():
        for old, new in BIASES.items():
            if name.endswith(new):
                name = name.removesuffix(new) + old
        published[name if name.startswith(("fc_norm.", "classifier.")) else PREFIX + name] = tensor
    return published


VIDEOMAE_TRANSFORMERS = Format(
    name="VideoMAE, transformers",
    encoder=ViT3D,
    models="model=videomae_base, or another videomae_*",
    recognizes=_recognizes,
    convert=_convert,
    revert=_revert,
)
