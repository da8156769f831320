"""The parts of any timm model in the order of depth, for stages and layer-wise learning rates."""

from collections.abc import Iterator

from timm.models._manipulate import group_with_matcher
from torch import nn

UNMATCHED = (
    "?"  # the name of no parameter, so it falls to what a matcher does not know: norms and heads at the end
)

# For the few models of timm that say nothing of their depth: numbered stages of numbered blocks
MATCHER = {
    "stem": r"^stem|^patch_embed|^cls_token|^pos_embed",
    "blocks": [(r"^\w+\.(\d+)\.(?:downsample|pool)", (0,)), (r"^\w+\.(\d+)\.(?:blocks\.)?(\d+)\.", None)],
}


class DepthGroup(nn.Module):
    """Modules, and parameters that lie in none of them, of one depth.

    They belong to the network, and this only refers to them, so it is never registered beside it.
    """

    def __init__(self, modules: list[nn.Module], parameters: list[nn.Parameter]):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.strays = nn.ParameterList(parameters)


def layers_and_blocks(network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """(layers, blocks) of a timm model, by what it says of itself (`group_matcher`).

    The layers hold every parameter once, in order of depth; one is a module of the network where it has a module
    of just these parameters, else a DepthGroup. Blocks are all but the stem and what comes after the last one.
    """
    matcher = network.group_matcher(coarse=False) if hasattr(network, "group_matcher") else MATCHER
    named = [(name, None) for name, _ in network.named_parameters()]
    depth_of = group_with_matcher([*named, (UNMATCHED, None)], matcher, reverse=True)
    tail = depth_of[UNMATCHED]
    modules: dict[int, list[nn.Module]] = {depth: [] for depth in range(tail + 1)}
    strays: dict[int, list[nn.Parameter]] = {depth: [] for depth in range(tail + 1)}
    for depth, part in _parts(network, "", depth_of):
        (modules if isinstance(part, nn.Module) else strays)[depth].append(part)

    layers = {
        depth: modules[depth][0]
        if len(modules[depth]) == 1 and not strays[depth]
        else DepthGroup(modules[depth], strays[depth])
        for depth in range(tail + 1)
        if modules[depth] or strays[depth]
    }
    return list(layers.values()), [layer for depth, layer in layers.items() if 0 < depth < tail]


def members(layer: nn.Module) -> list[nn.Module]:
    """The modules of the network that a layer consists of."""
    return list(layer.parts) if isinstance(layer, DepthGroup) else [layer]


def _parts(
    module: nn.Module, prefix: str, depth_of: dict[str, int]
) -> Iterator[tuple[int, nn.Module | nn.Parameter]]:
    """The largest modules whose parameters are all of one depth, and the parameters outside of these."""
    depths = {depth_of[prefix + name] for name, _ in module.named_parameters() if prefix + name in depth_of}
    if len(depths) == 1 and not isinstance(module, nn.ModuleList):  # which is never called itself
        yield depths.pop(), module
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield depth_of[prefix + name], parameter
    for name, child in module.named_children():
        yield from _parts(child, f"{prefix}{name}.", depth_of)
