"""timm's image models frame by frame: their own features, every parameter in the order of depth, clear refusals."""

import copy
from functools import cache, partial

import pytest
import torch
from einops import rearrange

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import PhaseSettings
from vidtrain.training.stages import (
    apply_phase,
    batch_norms,
    parameter_groups,
    parameter_table,
    prepare_batch_norm,
    set_train_mode,
)

# name: side of the images, layers, blocks, width of pooled features, places of a frame
MODELS = {
    "resnet18": (64, 9, 8, 512, (2, 2)),
    "convnext_atto": (64, 14, 12, 320, (2, 2)),
    "vit_tiny_patch16_224": (64, 13, 12, 192, (4, 4)),
    "swin_tiny_patch4_window7_224": (64, 13, 12, 768, (2, 2)),
    "efficientnet_b0": (64, 17, 16, 1280, (2, 2)),
    "deit3_small_patch16_224": (32, 13, 12, 384, (2, 2)),
    "eva02_tiny_patch14_224": (56, 14, 12, 192, (4, 4)),
    "mobilenetv3_small_050": (64, 14, 12, 1024, (2, 2)),
    "regnety_002": (64, 14, 13, 368, (2, 2)),
    "caformer_s18": (64, 20, 18, 512, (2, 2)),  # says nothing of its depth
}
SPREAD = [(name, features) for name in MODELS for features in ("pooled", "spatial")]
SMALL = ("test_resnet", "test_convnext", "test_efficientnet", "test_vit")
HEAD = partial(MeanPoolClassifier, norm=False)


def without_memory(name: str, features: str) -> TimmFrames:
    with torch.device("meta"):
        return TimmFrames(name, MODELS[name][0], features).eval()


@cache
def built(name: str, size: int, features: str) -> TimmFrames:
    torch.manual_seed(0)
    return TimmFrames(name, size, features).eval()


def encoder(name: str, size=64, features="pooled") -> TimmFrames:
    return copy.deepcopy(built(name, size, features))


def clip(size=64, frames=2, batch=1) -> torch.Tensor:
    return torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "features"), SPREAD)
def test_every_kind_of_model_gives_tokens_on_its_grid_and_layers_in_order_of_depth(name, features):
    ours = without_memory(name, features)
    size, layers, blocks, width, places = MODELS[name]
    assert (len(ours.layers), len(ours.blocks)) == (layers, blocks)
    held = [id(parameter) for layer in ours.layers for parameter in layer.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in ours.parameters())
    positions = [next(i for i, layer in enumerate(ours.layers) if layer is block) for block in ours.blocks]
    assert positions == list(range(1, 1 + blocks))

    started: list[int] = []  # what runs later must lie deeper
    for index, layer in enumerate(ours.layers):
        for part in layer.modules():
            part.register_forward_pre_hook(lambda *_, index=index: started.append(index))
    tokens = ours(clip(size, frames=3, batch=2).to("meta"))
    assert started == sorted(started) and set(started) == set(range(layers))

    places = (1, 1) if features == "pooled" else places
    assert (ours.embed_dim, ours.grid(3, size, size)) == (width, (3, *places))
    assert tokens.shape == (2, 3 * places[0] * places[1], width)
    tokens.sum().backward()
    assert [name for name, parameter in ours.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_pooled_features_are_what_timm_gives_its_classifier(name):
    ours, video = encoder(name), clip(frames=3, batch=2)
    network, width = ours.network, ours.embed_dim
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    expected = network.forward_head(network.forward_features(frames), pre_logits=True)
    head = HEAD(embed_dim=width, num_classes=width)
    head.linear.weight.copy_(torch.eye(width))
    difference = (head(ours(video)) - rearrange(expected, "(b t) d -> b t d", t=3).mean(dim=1)).abs().max()
    assert float(difference / expected.abs().max()) <= 1e-6  # measured: 0


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_place_belongs_to_its_frame(name):
    ours, video = encoder(name, features="spatial"), clip()
    changed = video.clone()
    changed[:, :, 1] = changed[:, :, 1].flip(-1)
    first, second = rearrange((ours(changed) - ours(video)).abs(), "1 (t n) d -> t n d", t=2)
    assert not first.any() and second.any()


@pytest.mark.slow
@torch.no_grad()
def test_places_run_over_height_then_width_without_class_tokens():
    video = clip(32)
    # as the encoder lays them out, whose sums are then the same to the bit
    frames = rearrange(video, "b c t h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)
    for name, layout in (
        ("test_resnet", "t d h w -> 1 (t h w) d"),
        ("vit_tiny_patch16_224", "t n d -> 1 (t n) d"),
        ("swin_tiny_patch4_window7_224", "t h w d -> 1 (t h w) d"),
    ):
        ours = encoder(name, 32, "spatial")
        features = ours.network.forward_features(frames)[:, ours.prefix_tokens :]
        assert torch.equal(ours(video), rearrange(features, layout))


def test_a_stage_trains_the_last_blocks_and_what_follows():
    model = VideoClassifier(encoder("test_vit"), HEAD, num_classes=3)
    apply_phase(model, PhaseSettings(encoder_blocks=2))
    trained = {".".join(name.split(".")[1:4]) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        *("network.blocks.4", "network.blocks.5", "network.norm.weight", "network.norm.bias"),
        *("linear.weight", "linear.bias"),
    }
    groups = parameter_groups(model, PhaseSettings())
    peak_lrs = {parameter: 1e-3 * group["lr_scale"] for group in groups for parameter in group["params"]}
    rows = parameter_table(model, peak_lrs)
    assert [row[0] for row in rows] == [
        "encoder.network.patch_embed, network.cls_token, network.pos_embed",
        *(f"encoder.network.blocks.{index}" for index in range(5)),
        "encoder.network.blocks.5, network.norm",
        "head",
        "total",
    ]
    assert [row[3] for row in rows[:-1]] == ["frozen"] * 5 + ["0.001"] * 3


def test_frozen_layers_keep_their_statistics():
    model = VideoClassifier(encoder("test_resnet"), HEAD, num_classes=3)
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    set_train_mode(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    model(clip(batch=2)[:, None])
    moved = {name for name, buffer in model.named_buffers() if name in before and not buffer.equal(before[name])}
    assert moved and all(name.startswith("encoder.network.layer4.") for name in moved)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_synchronized_batch_norms_compute_the_same_and_freeze_too(name):
    """timm's norms hold activations, and what lies between layers is counted among them by reference."""
    model = VideoClassifier(encoder(name), HEAD, num_classes=3).eval()
    expected = model(clip()[:, None])
    model = prepare_batch_norm(model, "sync", Ranks(torch.device("cuda", 0), world_size=2))
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in batch_norms(model))
    assert model(clip()[:, None]).equal(expected)
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    set_train_mode(model)
    training = {norm for norm in batch_norms(model) if norm.training}
    assert training == {norm for norm in batch_norms(model) if norm.weight.requires_grad}
    assert 0 < len(training) < len(batch_norms(model))


def test_layer_decay_falls_with_the_distance_from_the_head():
    model = VideoClassifier(encoder("test_resnet"), HEAD, num_classes=3)
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.5))
    scales = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    network = model.encoder.network
    assert [scales[parameter] for parameter in (network.conv1[0].weight, network.bn1.bias)] == [0.5**5] * 2
    assert scales[network.layer1[0].conv1.weight] == 0.5**4
    assert scales[network.layer4[0].bn2.weight] == 0.5 and scales[model.head.linear.weight] == 1
    assert len(scales) == len(list(model.parameters()))


def test_a_copy_has_its_own_layers():
    ours = encoder("test_vit")
    other = copy.deepcopy(ours)
    mine = {id(parameter) for parameter in other.parameters()}
    assert all(id(parameter) in mine for layer in other.layers for parameter in layer.parameters())
    assert not mine & {id(parameter) for parameter in ours.parameters()}
    assert list(other.state_dict()) == [name for name in ours.state_dict() if name.startswith("network.")]


# EVA's blocks are given their positions by keyword
@pytest.mark.parametrize(("name", "size"), [("test_resnet", 64), ("eva02_tiny_patch14_224", 28)])
def test_recomputed_activations_give_equal_gradients_and_statistics(name, size):
    plain = encoder(name, size).train()
    saving = TimmFrames(name, size, activation_checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    for each in (plain, saving):
        each(clip(size, batch=2))[..., :24].sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "places"), [("test_vit", (2, 3)), ("test_resnet", (1, 2)), ("test_convnext", (1, 1))])
@torch.no_grad()
def test_clips_of_another_size(name, places):
    ours = encoder(name, features="spatial")
    assert ours.grid(2, 32, 48) == (2, *places)
    assert ours(torch.randn(1, 3, 2, 32, 48)).shape == (1, 2 * places[0] * places[1], ours.embed_dim)


def test_drop_path_grows_over_depth():
    ours = TimmFrames("test_vit", 32, drop_path=0.2)
    rates = [block.drop_path1.drop_prob for block in ours.network.blocks[1:]]
    assert rates == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])


@torch.no_grad()
def test_the_mean_does_not_know_the_order_of_frames():
    ours = encoder("test_resnet")
    clips = clip(frames=4)[:, None]
    for head in (HEAD, partial(AttentiveClassifier, num_heads=4)):
        torch.manual_seed(2)
        model = VideoClassifier(ours, head, num_classes=3).eval()
        torch.testing.assert_close(model(clips), model(clips.flip(3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("features", ["pooled", "spatial"])
@torch.no_grad()
def test_differences_of_frames_and_both_beside_each_other(features):
    video, rgb = clip(frames=4, batch=2), encoder("test_resnet", features=features)
    others = {
        kind: TimmFrames("test_resnet", 64, features, input=kind, difference_gain=2.0).eval()
        for kind in ("difference", "both")
    }
    for other in others.values():
        other.load_state_dict(rgb.state_dict())
    changes = rgb(2 * (video[:, :, 1:] - video[:, :, :-1]))
    assert torch.equal(others["difference"](video), changes)
    assert torch.equal(others["both"](video), torch.cat((rgb(video[:, :, :-1]), changes), dim=-1))
    assert others["both"].embed_dim == 2 * rgb.embed_dim == changes.shape[-1] * 2
    assert others["difference"].grid(4, 64, 64) == (3, *rgb.grid(4, 64, 64)[1:])
    still = video[:, :, :1].expand(-1, -1, 4, -1, -1)
    assert torch.equal(others["difference"](still), rgb(torch.zeros_like(video[:, :, 1:])))


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_spatial_features_as_means_of_parts_of_a_frame(name):
    size = 128 if name.startswith("swin") else 64
    fine, coarse = encoder(name, size, "spatial"), TimmFrames(name, size, "spatial", spatial_size=2).eval()
    coarse.load_state_dict(fine.state_dict())
    places = fine(clip(size, batch=2)).unflatten(1, fine.grid(2, size, size))
    assert places.shape[2:4] == (4, 4) or name == "test_resnet"
    half = places.shape[2] // 2
    expected = rearrange(places, "b t (h p) (w q) d -> b (t h w) (p q) d", p=half, q=half).mean(dim=2)
    torch.testing.assert_close(coarse(clip(size, batch=2)), expected, atol=1e-5, rtol=0)
    assert coarse.grid(2, size, size) == (2, 2, 2)


@pytest.mark.slow
@torch.no_grad()
def test_traced_as_one_graph():
    ours, video = encoder("test_vit"), clip()
    traced = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(video), ours(video), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backbone": "resnt50"},
            r"backbone=resnt50: timm \S+ has no such image model; did you mean resnet50 ",
        ),
        ({"backbone": "zzzz"}, r"backbone=zzzz: .*timm\.list_models\(\)"),
        (
            {"backbone": "resnet50.a1_in1k"},
            r"a1_in1k names weights; write model\.encoder\.backbone=resnet50 pretrained=timm:resnet50\.a1_in1k",
        ),
        ({"features": "tokens"}, r"model\.encoder\.features='tokens' .*pooled, spatial\."),
        ({"input": "flow"}, r"model\.encoder\.input='flow' .*rgb, difference, both\."),
        ({"spatial_size": 2}, r"model\.encoder\.spatial_size=2 needs model\.encoder\.features=spatial"),
        (
            {"spatial_size": 2, "features": "spatial"},
            r"model\.encoder\.spatial_size=2 is more than the 1x1 places .*clip\.size larger",
        ),
        ({"backbone": "inception_v3"}, r"clip\.size=32x32: inception_v3 cannot process frames of this size"),
        ({"backbone": "vit_small_patch14_dinov2"}, r"clip\.size=32x32: .*divisible by patch size \(14\)"),
        ({"drop_path": 1.0}, r"model\.encoder\.drop_path=1\.0 must be a share from 0 to below 1"),
        ({"backbone": "densenet121", "drop_path": 0.1}, r"drop_path=0\.1: densenet121 has no drop path"),
        (
            {"backbone": "inception_next_atto", "features": "spatial"},
            r"has no features for every place .*Cannot disable pooling\); set model\.encoder\.features=pooled",
        ),
        (
            {"backbone": "deit_tiny_distilled_patch16_224", "features": "spatial", "image_size": 224},
            r"has no features for every place of a frame \(but \[1, 192\]\); set model\.encoder\.features=pooled",
        ),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(UserError, match=message):
        TimmFrames(**({"backbone": "test_resnet", "image_size": 32} | options))


def test_a_clip_that_the_model_cannot_take():
    with pytest.raises(UserError, match=r"clip\.size=40x40: vit_tiny_patch16_224 cannot process frames of this size"):
        encoder("vit_tiny_patch16_224", 32)(clip(40))


def test_a_clip_of_one_frame_has_no_differences():
    with pytest.raises(UserError, match=r"clip\.frames=1 has no frame differences.*set clip\.frames to 2 or more"):
        TimmFrames("test_resnet", 32, input="both")(clip(32, frames=1))


def test_it_is_built_without_memory():
    with torch.device("meta"):
        ours = TimmFrames("swin_tiny_patch4_window7_224", (64, 96), "spatial")
    assert {parameter.device.type for parameter in ours.parameters()} == {"meta"}
    assert ours.grid(2, 64, 96) == (2, 2, 3)
