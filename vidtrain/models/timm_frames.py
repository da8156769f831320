"""Any image model of timm as an encoder: its features of each frame are the tokens of the video."""

import difflib
import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vidtrain.errors import UserError, check_choice, check_drop_path, check_positive
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid

FEATURES = ("pooled", "spatial")
INPUTS = ("rgb", "difference", "both")


class TimmFrames(nn.Module):
    """Encoder: video [b 3 t h w] of normalized floats -> tokens [b n d], frame after frame.

    `backbone` is a name of `timm.list_models()`. With `features="pooled"` a frame has one token, the input of the image
    model's classifier. With "spatial" it has one for every place of the last features, without class tokens, or one for
    each of `spatial_size` x `spatial_size` parts of the frame, averaged over the part's places.

    With `input="difference"` the image model's input is x[t+1] - x[t] for each pair of adjacent frames, times
    `difference_gain`, as in the RGB differences of TSN (Wang et al. 2016, arXiv:1608.00859). It looks like a gray
    picture with the outlines of moving objects, so a backbone that was trained on pictures can use it. With "both" a
    token is the concatenation of the backbone's features of the first frame of a pair and of the difference. A clip of
    t frames then has t - 1 tokens at each place.

    `image_size` (side, or height and width) is for models with a fixed size, such as Swin; clips of another size work
    only if timm supports that for the model. `drop_path` grows over depth up to the given value. Raises UserError for a
    name that timm does not know, and for clips that the model cannot process.
    """

    network: Any  # timm's models have no common type
    embed_dim: int  # width of a token: twice the width of the network with input="both"
    prefix_tokens: int

    def __init__(
        self,
        backbone: str,
        image_size: int | Sequence[int],
        features: str = "pooled",
        drop_path: float = 0.0,
        activation_checkpointing: bool = False,
        input: str = "rgb",
        difference_gain: float = 1.0,
        spatial_size: int | None = None,
    ):
        super().__init__()
        check_choice("model.encoder.features", features, FEATURES)
        check_choice("model.encoder.input", input, INPUTS)
        check_spatial_size(spatial_size, features)
        check_name(backbone)
        check_drop_path("model.encoder.drop_path", drop_path)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        options = backbone_options(backbone, (height, width), drop_path)
        self.backbone = backbone
        self.features = features
        self.input, self.difference_gain, self.spatial_size = input, difference_gain, spatial_size
        self._options = tuple(options.items())
        self._places: dict[tuple[int, int], tuple[int, int]] = {}
        self.grid(2, height, width)

        self.network = build_backbone(backbone, features, options)
        self.embed_dim = self.network.head_hidden_size * (2 if input == "both" else 1)
        self.prefix_tokens = prefix_tokens(self.network)
        # In lists, so that modules of the network are not registered twice
        self._modules_seen: list[nn.Module] = []
        self._depth: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        if activation_checkpointing:
            recompute_activations(part for block in self.blocks for part in members(block))

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth; together they hold every parameter."""
        return self._in_depth()[0]

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks that unfreezing counts: residual or attention blocks, as timm groups them for the model."""
        return self._in_depth()[1]

    def _in_depth(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """(layers, blocks). They are computed again if modules of the network were replaced, such as batch norms by
        synchronized ones."""
        modules = list(self.network.modules())
        if list(map(id, modules)) != list(map(id, self._modules_seen)):
            self._modules_seen, self._depth = modules, layers_and_blocks(self.network)
        return self._depth

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip. Raises UserError for a frame size that the image model cannot process, and
        for fewer frames than the input needs."""
        if (height, width) not in self._places:
            self._places[height, width] = self._look(height, width)
        h, w = self._places[height, width]
        steps = frames if self.input == "rgb" else frames - 1
        if steps < 1:
            raise UserError(
                f"clip.frames={frames} has no frame differences, which model.encoder.input={self.input} needs; set "
                "clip.frames to 2 or more"
            )
        if self.spatial_size is None:
            return steps, h, w
        if self.spatial_size > min(h, w):
            raise UserError(
                f"model.encoder.spatial_size={self.spatial_size} is more than the {h}x{w} places of a frame's "
                "features; make it smaller, or clip.size larger"
            )
        return steps, self.spatial_size, self.spatial_size

    def forward(self, x: Tensor) -> Tensor:
        self.grid(*x.shape[2:])  # raises UserError for clips that do not fit
        if self.input == "rgb":
            return self._tokens(x)
        differences = self._tokens(self.difference_gain * (x[:, :, 1:] - x[:, :, :-1]))
        if self.input == "difference":
            return differences
        return torch.cat((self._tokens(x[:, :, :-1]), differences), dim=-1)

    def _tokens(self, x: Tensor) -> Tensor:
        """The image model's features of pictures [b 3 t h w]: [b n d]."""
        t = x.shape[2]
        pictures = rearrange(x, "b c t h w -> (b t) c h w")
        # the channels-last layout halves the time of EfficientNets on a CPU
        features = self.network(pictures.contiguous(memory_format=torch.channels_last))
        if self.features == "pooled":
            return rearrange(features, "(b t) d -> b t d", t=t)
        if features.ndim == 3:
            h, _ = self._places[x.shape[3], x.shape[4]]
            features = rearrange(features[:, self.prefix_tokens :], "n (h w) d -> n d h w", h=h)
        elif features.shape[1] != self.network.head_hidden_size:  # channels are last, as in Swin
            features = rearrange(features, "n h w d -> n d h w")
        if self.spatial_size is not None:
            features = F.adaptive_avg_pool2d(features, self.spatial_size)
        return rearrange(features, "(b t) d h w -> b (t h w) d", t=t)

    @torch.compiler.disable
    def _look(self, height: int, width: int) -> tuple[int, int]:
        return places_of(self.backbone, self.features, self._options, height, width)


def check_spatial_size(spatial_size: int | None, features: str) -> None:
    """Raises UserError for a size below 1, or if the features are not spatial."""
    if spatial_size is None:
        return
    check_positive("model.encoder.spatial_size", spatial_size)
    if features != "spatial":
        raise UserError(
            f"model.encoder.spatial_size={spatial_size} needs model.encoder.features=spatial (it is {features}), "
            "or null"
        )


@cache  # a model is built for trial, to be trained, to be evaluated
def places_of(
    name: str, features: str, options: tuple[tuple[str, Any], ...], height: int, width: int
) -> tuple[int, int]:
    """How many tokens of a frame lie along h and w: the model is run without memory or numbers. Raises UserError for
    frames that it does not take, and for features without places."""
    try:
        with torch.device("meta"):
            network = build_backbone(name, features, dict(options)).eval()
            found = network(torch.empty(1, 3, height, width))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"clip.size={height}x{width}: {name} cannot process frames of this size ({str(error).strip()}); "
            "set clip.size to one that it takes"
        ) from error
    if features == "pooled":
        return 1, 1
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(_no_places(name, f"but {shape}"))
    if found.ndim == 4:
        channels_first = found.shape[1] == network.head_hidden_size
        h, w = found.shape[2:] if channels_first else found.shape[1:3]
        return h, w
    places = found.shape[1] - prefix_tokens(network)
    rows = max(1, round((places * height / width) ** 0.5))  # of patches that are square
    if rows * (places // rows) != places:
        raise UserError(_no_places(name, f"but {places} tokens, which are no grid"))
    return rows, places // rows


def prefix_tokens(network: Any) -> int:
    """The number of tokens without a place, such as a class token, at the start; 0 if the timm model does not say."""
    return network.num_prefix_tokens if hasattr(network, "num_prefix_tokens") else 0


class _Unclamped(TorchFunctionMode):
    """Within it `clamp_` does nothing on the meta device, whose tensors hold no values. PyTorch runs it there in
    Python, which took two thirds of the time of building a backbone: once for each truncated normal weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clamp_ and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def build_backbone(name: str, features: str, options: dict[str, Any]) -> Any:
    """timm's model without its classifier and, for spatial features, without its pooling; not pretrained. Raises
    UserError if its pooling cannot be removed."""
    with _Unclamped():
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
    if features == "spatial":
        try:
            network.reset_classifier(0, "")
        except (AssertionError, ValueError) as error:  # raised by models whose pooling cannot be removed
            raise UserError(_no_places(name, str(error))) from error
    return network


def _no_places(name: str, reason: str) -> str:
    return (
        f"model.encoder.backbone={name} has no features for every place of a frame ({reason}); "
        "set model.encoder.features=pooled"
    )


def backbone_options(name: str, image_size: tuple[int, int], drop_path: float) -> dict[str, Any]:
    """The options for the constructor of an image model, limited to those that it has. Raises UserError for a
    `drop_path` if it has no such option."""
    known = constructor_options(name)
    if drop_path > 0 and "drop_path_rate" not in known:
        raise UserError(f"model.encoder.drop_path={drop_path}: {name} has no drop path; set it to 0")
    options = {"img_size": image_size, "dynamic_img_size": True, "drop_path_rate": drop_path}
    return {key: value for key, value in options.items() if key in known}


@cache
def constructor_options(name: str) -> frozenset[str]:
    """The names of the constructor arguments of a timm model."""
    with torch.device("meta"), _Unclamped():
        kinds = type(timm.create_model(name, pretrained=False)).__mro__
    return frozenset(name for kind in kinds for name in inspect.signature(kind).parameters)


def check_name(name: str) -> None:
    """Raises UserError for a model that timm does not know, with similar names."""
    known = timm.list_models()
    if name in known:
        return
    architecture, _, tag = name.partition(".")
    if architecture in known:
        raise UserError(
            f"model.encoder.backbone={name}: {tag} names weights; write model.encoder.backbone={architecture} "
            f"pretrained=timm:{name}"
        )
    near = difflib.get_close_matches(architecture, known, n=4, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists those it knows."
    raise UserError(f"model.encoder.backbone={name}: timm {timm.__version__} has no such image model; {hint}")


# A name that no pattern of a matcher matches, so that it gets the depth of norms and heads at the end
UNMATCHED = "?"
# For the few models of timm without a matcher: numbered stages of numbered blocks
MATCHER = {
    "stem": r"^stem|^patch_embed|^cls_token|^pos_embed",
    "blocks": [(r"^\w+\.(\d+)\.(?:downsample|pool)", (0,)), (r"^\w+\.(\d+)\.(?:blocks\.)?(\d+)\.", None)],
}


class DepthGroup(nn.Module):
    """Modules of the same depth, and parameters of that depth outside of them. It refers to modules of the network, so
    it must not be registered as a submodule beside it."""

    def __init__(self, modules: list[nn.Module], parameters: list[nn.Parameter]):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.strays = nn.ParameterList(parameters)


def layers_and_blocks(network: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """(layers, blocks) of a timm model, from its `group_matcher`. The layers are in order of depth and hold every
    parameter once. A layer is a module of the network if one module has exactly these parameters, else a `DepthGroup`.
    The blocks are the layers without the stem and without those after the last block."""
    matcher = network.group_matcher(coarse=False) if hasattr(network, "group_matcher") else MATCHER
    named = [(name, None) for name in (*dict(network.named_parameters()), UNMATCHED)]
    depth_of = group_with_matcher(iter(named), matcher, reverse=True)
    tail = depth_of[UNMATCHED]
    modules: dict[int, list[nn.Module]] = {depth: [] for depth in range(tail + 1)}
    strays: dict[int, list[nn.Parameter]] = {depth: [] for depth in range(tail + 1)}
    for depth, part in _parts(network, "", depth_of):
        if isinstance(part, nn.Parameter):
            strays[depth].append(part)
        else:
            modules[depth].append(part)

    layers: dict[int, nn.Module] = {}
    for depth in range(tail + 1):
        if len(modules[depth]) == 1 and not strays[depth]:
            layers[depth] = modules[depth][0]
        elif modules[depth] or strays[depth]:
            layers[depth] = DepthGroup(modules[depth], strays[depth])
    return list(layers.values()), [layer for depth, layer in layers.items() if 0 < depth < tail]


def members(layer: nn.Module) -> list[nn.Module]:
    """The modules of a layer."""
    return list(layer.parts) if isinstance(layer, DepthGroup) else [layer]


def _parts(module: nn.Module, prefix: str, depth_of: dict[str, int]) -> Iterator[tuple[int, nn.Module | nn.Parameter]]:
    """Yields (depth, part) for the largest modules whose parameters have a single depth, and parameters outside of
    them."""
    depths = {depth_of[prefix + name] for name, _ in module.named_parameters() if prefix + name in depth_of}
    if len(depths) == 1 and not isinstance(module, nn.ModuleList):  # a list has no forward pass
        yield depths.pop(), module
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield depth_of[prefix + name], parameter
    for name, child in module.named_children():
        yield from _parts(child, f"{prefix}{name}.", depth_of)
