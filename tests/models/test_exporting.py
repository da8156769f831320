"""Exported graphs of every kind of model, compared with PyTorch: batches of any size, inputs, precisions, faults."""

import sys
from functools import partial

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.evaluation.views import fuse, probabilities
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.exporting import (
    SAMPLES,
    ClipGraph,
    Difference,
    OnnxClassifier,
    check_difference,
    check_onnx,
    difference,
    program_runner,
    random_clips,
    reference_outputs,
    save_onnx,
    save_program,
    save_weights,
    trace,
)
from vidtrain.models.heads import AttentiveClassifier, FullyConvolutionalClassifier, MeanPoolClassifier
from vidtrain.models.residual3d import ResNeXt3D
from vidtrain.models.temporal_heads import (
    STATISTICS,
    TemporalConvolutionClassifier,
    TemporalStatisticsClassifier,
)
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.files import read_safetensors

CLIP = (4, 16, 16)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
vit = partial(ViT3D, 16, 4, embed_dim=24, depth=1, num_heads=2, patch_size=8)
attentive = partial(AttentiveClassifier, num_heads=2)
mean_pool = MeanPoolClassifier


def cnn():
    return ResNeXt3D(
        num_blocks=[1, 1],
        residual_transformation_type="basic_transformation",
        skip_transformation_type="postactivated_shortcut",
        stem_planes=8,
        stage_planes=8,
        stage_temporal_kernel_basis=[[3], [3]],
        temporal_conv_1x1=[False, False],
        stage_temporal_stride=[1, 2],
        stage_spatial_stride=[1, 2],
    )


# largest difference of ONNX to PyTorch measured, of the largest logit: 4e-7
MODELS = {
    "rope, attentive, joint": lambda: (
        vit(positions="rope", activation_checkpointing=True),
        attentive,
        "joint",
    ),
    "sincos, attentive, mean_probs": lambda: (vit(), attentive, "mean_probs"),
    "cnn, every place, mean_logits": lambda: (
        cnn(),
        partial(FullyConvolutionalClassifier, pool_size=[1, 2, 2]),
        "mean_logits",
    ),
    "statistics": lambda: (
        vit(),
        partial(TemporalStatisticsClassifier, statistics=STATISTICS),
        "mean_logits",
    ),
    "differences of frames, convolution, joint": lambda: (
        TimmFrames("test_resnet", 16, input="difference"),
        partial(TemporalConvolutionClassifier, width=8),
        "joint",
    ),
}


def classifier(encoder: nn.Module, head, fusion: str = "mean_logits") -> VideoClassifier:
    torch.manual_seed(0)
    model = VideoClassifier(encoder, head, 5, fusion).eval()
    for parameter in model.parameters():  # far from their starting values, where logits are all alike
        nn.init.normal_(parameter, std=0.2)
    return model


def graph_of(model: nn.Module, **options) -> ClipGraph:
    return ClipGraph(model, partial(probabilities, fusion=model.fusion), MEAN, STD, **options)


@pytest.fixture(scope="module")
def small():
    """A graph, its traced program, and what PyTorch gives."""
    graph = graph_of(classifier(vit(), mean_pool))
    return graph, trace(graph, CLIP), reference_outputs(graph, CLIP)


@pytest.mark.slow
def test_a_graph_of_deviations_is_right_where_features_hardly_move(tmp_path):
    """Before the least variance was in the graph, it was 1e-2 of the largest logit off."""
    torch.manual_seed(0)
    head = partial(TemporalStatisticsClassifier, statistics=("mean", "deviation"), streams=2)
    model = VideoClassifier(TimmFrames("test_resnet", 32, input="both"), head, 5, "joint").eval()
    graph = graph_of(model)
    still = torch.randint(0, 256, (1, 1, 3, 1, 32, 32)).expand(1, 8, 3, 2, 32, 32)
    nearly = (still + (torch.rand(1, 8, 3, 2, 32, 32) < 0.02)).clamp(0, 255)
    clips = [still.byte().contiguous(), nearly.byte()]
    save_onnx(trace(graph, (2, 32, 32)), tmp_path / "model.onnx", 18, {})
    with torch.no_grad():
        expected = [(each, *graph(each)) for each in clips]
    assert difference(OnnxClassifier(tmp_path / "model.onnx", fusion="").run, expected).relative < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_graphs_compute_what_the_model_does_for_any_number_of_videos_and_views(kind, tmp_path):
    model = classifier(*MODELS[kind]())
    graph = graph_of(model)
    expected = reference_outputs(graph, CLIP)
    assert [tuple(clips.shape[:2]) for clips, _, _ in expected] == [(1, 1), (3, 1), (2, 2)] == list(SAMPLES)
    program = trace(graph, CLIP)
    assert not [node.target for node in program.graph.nodes if "checkpoint" in str(node.target)]

    save_onnx(program, tmp_path / "model.onnx", 18, {"a": "b"})
    found = difference(OnnxClassifier(tmp_path / "model.onnx", fusion="").run, expected)
    # norms of small changes enlarge rounding: 5e-6 and 2e-5 were seen, and float32 is 2e-5 off float64 in PyTorch alone
    assert found.relative < (5e-5 if kind == "statistics" else 2e-6)
    assert found.equal_top1 == 1
    save_program(program, tmp_path / "model.pt2", "{}")
    assert difference(program_runner(tmp_path / "model.pt2"), expected).relative < 1e-6

    # the same without anything of the exporter: normalized by hand, fused by the evaluation
    clips, logits, probabilities = expected[2]
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in (MEAN, STD))
    with torch.no_grad():
        own = model((clips / 255 - mean) / std)
    torch.testing.assert_close(logits, own)
    torch.testing.assert_close(probabilities, fuse(own, model.fusion).softmax(dim=-1))
    assert tuple(logits.shape) == (2, 1 if model.fusion == "joint" else 2, 5)


def test_probabilities_of_independent_classes_are_those_of_their_fused_logits():
    logits = 3 * torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    for fusion in ("mean_logits", "mean_probs", "joint"):
        for independent, to_probabilities in ((False, partial(torch.softmax, dim=-1)), (True, torch.sigmoid)):
            expected = to_probabilities(fuse(logits, fusion, independent))
            torch.testing.assert_close(probabilities(logits, fusion, independent), expected)


@pytest.mark.slow
def test_float_clips_are_taken_as_they_are(small, tmp_path):
    graph, _, expected = small
    floats = graph_of(graph.model, input="float32")
    clips = random_clips(floats, (2, 2, 3, *CLIP))
    assert clips.dtype == torch.float32
    with torch.no_grad():
        logits, _ = floats(clips)
    torch.testing.assert_close(logits, expected[2][1])
    save_onnx(trace(floats, CLIP), tmp_path / "model.onnx", 18, {})
    model = OnnxClassifier(tmp_path / "model.onnx", "mean_logits")
    assert not model.takes_uint8
    torch.testing.assert_close(model(clips), expected[2][1])


@pytest.mark.slow
def test_half_precision_is_held_against_float32(tmp_path):
    model = classifier(vit(), mean_pool)
    expected = reference_outputs(graph_of(model), CLIP)
    save_onnx(trace(graph_of(model, precision="fp16"), CLIP), tmp_path / "model.onnx", 18, {})
    found = difference(OnnxClassifier(tmp_path / "model.onnx", fusion="").run, expected)
    assert 1e-5 < found.relative < 1e-2  # measured 5e-4
    assert expected[0][1].dtype == torch.float32


@pytest.mark.slow
def test_an_onnx_file_is_a_model_and_says_what_it_takes(small, tmp_path):
    _, program, expected = small
    save_onnx(program, tmp_path / "model.onnx", 20, {"card": '{"classes": 5}'})
    model = OnnxClassifier(tmp_path / "model.onnx", "mean_probs")
    assert (model.takes_uint8, model.clip_shape, model.num_classes) == (True, (3, 4, 16, 16), 5)
    assert model.metadata["card"] == '{"classes": 5}'
    torch.testing.assert_close(model(expected[2][0]), expected[2][1])
    with pytest.raises(UserError, match="takes clips of 4 frames at 16x16, not of 8 frames at 16x16"):
        model(torch.zeros(1, 1, 3, 8, 16, 16, dtype=torch.uint8))
    import onnx

    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 20


def test_files_that_are_no_graph_of_ours_are_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="onnxruntime cannot run .*model.onnx"):
        OnnxClassifier(tmp_path / "model.onnx", "mean_logits")
    torch.onnx.export(nn.ReLU().eval(), (torch.zeros(2),), tmp_path / "model.onnx", verbose=False)
    with pytest.raises(UserError, match="was not exported by vidtrain: it takes"):
        OnnxClassifier(tmp_path / "model.onnx", "mean_logits")


# --- faults -----------------------------------------------------------------------------------------------


class Eigenvalues(nn.Module):
    """A head with an operation that ONNX has not."""

    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, num_classes)

    def forward(self, tokens, grid):
        square = tokens[:, :4, :4]
        return self.linear(tokens.mean(dim=1)) + torch.linalg.eigvalsh(square).sum(dim=-1, keepdim=True)


class Branching(nn.Module):
    """A head whose operations depend on the values."""

    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, num_classes)

    def forward(self, tokens, grid):
        pooled = tokens.mean(dim=1)
        return self.linear(pooled if pooled.sum() > 0 else -pooled)


@pytest.mark.slow
def test_a_layer_that_onnx_cannot_express_is_named(tmp_path):
    program = trace(graph_of(classifier(vit(), Eigenvalues)), CLIP)
    with pytest.raises(UserError, match=r"ONNX cannot express this model: (.|\n)*eigh.*formats=\[torch_export\]"):
        save_onnx(program, tmp_path / "model.onnx", 18, {})
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_no_graph_is_named():
    with pytest.raises(UserError, match="ViT3D cannot be turned into a graph: "):
        trace(graph_of(classifier(vit(), Branching)), CLIP)


@pytest.mark.parametrize("opset", [11, 17, 99])
def test_operator_sets_that_cannot_express_the_layers_are_refused(opset, small, tmp_path):
    with pytest.raises(UserError, match=rf"opset={opset} cannot be written: .*opset 18 or later.*opset \d\d at most"):
        save_onnx(small[1], tmp_path / "model.onnx", opset, {})


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_an_absent_package_is_named_with_the_extra_that_brings_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"exporting to ONNX needs {package}: uv sync --extra export"):
        check_onnx(18)


def test_unknown_words_are_refused(small):
    with pytest.raises(UserError, match="input=float16 is unknown|input"):
        graph_of(small[0].model, input="float16")
    with pytest.raises(UserError, match="precision"):
        graph_of(small[0].model, precision="fp8")


def test_differences_are_measured_over_all_batches():
    zeros = torch.zeros(1)
    expected = [
        (zeros, torch.tensor([[[1.0, -4.0]]]), torch.tensor([[0.75, 0.25]])),
        (zeros, torch.tensor([[[2.0, 1.0]]]), torch.tensor([[0.5, 0.5]])),
    ]
    given = iter(
        [
            (torch.tensor([[[1.0, -4.0]]]), torch.tensor([[0.25, 0.75]])),
            (torch.tensor([[[2.0, 3.0]]]), torch.tensor([[0.5, 0.5]])),
        ]
    )
    found = difference(lambda clips: next(given), expected)
    assert found == Difference(relative=0.5, absolute=2.0, probability=0.5, equal_top1=0.5)
    check_difference(found, "model.onnx", 0.5)
    with pytest.raises(UserError, match="model.onnx differs from PyTorch by 5.0e-01 .*max_difference=0.4"):
        check_difference(found, "model.onnx", 0.4)


@pytest.mark.parametrize("given", [torch.full((1, 1, 2), torch.nan), torch.zeros(1, 2, 2)])
def test_outputs_that_are_no_logits_of_the_clips_are_refused(given):
    expected = [(torch.zeros(1, 1, 3, 4, 8, 8), torch.ones(1, 1, 2), torch.ones(1, 2))]
    with pytest.raises(UserError, match="but PyTorch|not finite"):
        difference(lambda clips: (given, torch.ones(1, 2)), expected)


def test_weights_are_written_with_what_is_said_of_them(tmp_path):
    model = classifier(cnn(), mean_pool)
    save_weights(model, tmp_path / "model.safetensors", "fp32", {"card": "{}"})
    metadata, tensors = read_safetensors(tmp_path / "model.safetensors")
    assert metadata == {"card": "{}"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    assert tensors.keys() == model.state_dict().keys()
    save_weights(model, tmp_path / "half.safetensors", "bf16", {})
    _, half = read_safetensors(tmp_path / "half.safetensors")
    assert half["head.linear.weight"].dtype == torch.bfloat16
    counters = [tensor.dtype for name, tensor in half.items() if name.endswith("num_batches_tracked")]
    assert counters and set(counters) == {torch.int64}
    (tmp_path / "half.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="half.safetensors is truncated or not a safetensors file"):
        read_safetensors(tmp_path / "half.safetensors")
