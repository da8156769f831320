"""What training asks of an encoder, of torchvision's video models: stages, layer decay, recomputing."""

from functools import cache, partial

import pytest
import torch

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.torchvision_video import (
    TorchvisionMViT,
    TorchvisionResNet,
    TorchvisionS3D,
    TorchvisionSwin,
)
from vidtrain.training.run import PhaseSettings
from vidtrain.training.stages import apply_phase, parameter_groups, set_train_mode

MEAN = partial(MeanPoolClassifier, norm=False)
TRAINABLE = {  # with clips about as small as each of them takes
    "mc3_18": (TorchvisionResNet, {"name": "mc3_18"}, (4, 32, 32)),
    "s3d": (TorchvisionS3D, {}, (8, 32, 32)),
    "mvit_v1_b": (
        TorchvisionMViT,
        {"image_size": 32, "num_frames": 4, "drop_path": 0.0, "name": "mvit_v1_b"},
        (4, 32, 32),
    ),
    "mvit_v2_s": (TorchvisionMViT, {"image_size": 32, "num_frames": 4, "drop_path": 0.0}, (4, 32, 32)),
    "swin3d_t": (TorchvisionSwin, {"name": "swin3d_t", "drop_path": 0.0}, (4, 32, 32)),
}


def untrained(name: str, **settings) -> VideoClassifier:
    kind, arguments, _ = TRAINABLE[name]
    return VideoClassifier(kind(**arguments, **settings), MEAN, num_classes=3)


@cache
def initial(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return untrained(name).state_dict()


def trainable(name: str, **settings) -> tuple[VideoClassifier, torch.Tensor]:
    """A model of its own with the same weights every time, and two clips."""
    with torch.device("meta"):
        model = untrained(name, **settings)
    model.load_state_dict({key: tensor.clone() for key, tensor in initial(name).items()}, assign=True)
    return model, torch.randn(2, 1, 3, *TRAINABLE[name][2], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TRAINABLE)
def test_frozen_parts_stand_still_and_released_ones_move(name):
    model, clips = trainable(name)
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    set_train_mode(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, PhaseSettings()), lr=0.1)
    torch.nn.functional.cross_entropy(model(clips)[:, 0], torch.tensor([0, 2])).backward()
    optimizer.step()
    layers = model.encoder.layers
    first = next(i for i, layer in enumerate(layers) if layer is model.encoder.blocks[-1])
    names = {module: key for key, module in model.named_modules()}
    frozen = tuple(f"{names[layer]}." for layer in layers[:first])
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert not any(key.startswith(frozen) for key in moved)  # batch statistics neither
    trained = {key for key in after if not key.startswith(frozen)}
    buffers = {key for key, _ in model.named_buffers()}
    assert {key for key in trained & buffers if key.endswith(("running_mean", "num_batches_tracked"))} <= moved
    assert "head.linear.weight" in moved and any(key.startswith(names[layers[first]]) for key in moved)


@pytest.mark.parametrize("name", TRAINABLE)
def test_layer_decay_falls_with_depth(name):
    with torch.device("meta"):
        model = untrained(name)
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.5))
    scales = {group["name"].removesuffix(".no_decay"): group["lr_scale"] for group in groups}
    blocks = {layer: place for place, layer in enumerate(reversed(model.encoder.blocks), start=1)}
    expected = {
        f"encoder.layer{i:02d}": 0.5 ** blocks[layer] for i, layer in enumerate(model.encoder.layers) if layer in blocks
    }
    assert scales.items() >= {"head": 1.0, "encoder.layer00": 0.5 ** (len(blocks) + 1), **expected}.items()
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))


def train_step(model: VideoClassifier, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients and buffers after one backward pass."""
    model.train()
    torch.manual_seed(1)
    model(clips).square().sum().backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    return gradients | dict(model.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_parameter_gets_a_gradient_and_recomputing_changes_neither_gradients_nor_statistics(name):
    model, clips = trainable(name)
    recomputing, _ = trainable(name, activation_checkpointing=True)
    expected, found = train_step(model, clips), train_step(recomputing, clips)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.isfinite(tensor).all(), key  # there is one, if of zeros
        assert torch.equal(found[key], tensor), key
