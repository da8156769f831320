"""Exports a VideoClassifier as ONNX, torch.export or safetensors, and compares the exported graph with PyTorch."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vidtrain.errors import UserError, check_choice
from vidtrain.files.folders import install_hint

INPUTS = ("uint8", "float32")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The largest allowed difference to PyTorch in float32, relative to the largest logit: rounding explains that much
MAX_DIFFERENCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2}
SAMPLES = ((1, 1), (3, 1), (2, 2))  # (videos, views) of the batches on which a graph is compared with PyTorch
INPUT_NAME, OUTPUT_NAMES = "clips", ("clip_logits", "probabilities")
LEAST_OPSET = 18  # the lowest version whose operators PyTorch's exporter writes
TOO_BIG_FOR_ONE_FILE = 1 << 30  # bytes of weights; an ONNX file ends at 2 GiB


class ClipGraph(nn.Module):
    """The exported graph: clips [videos views 3 t h w] -> clip logits [videos views k] and probabilities [videos k].

    With `input="uint8"` the graph divides by 255 and normalizes by `mean` and `std` (one number for each channel); with
    float32 it takes normalized clips. `predict` maps clip logits to probabilities. Outputs are float32 in every
    `precision`. A model that attends over all views jointly has one row of clip logits. Raises UserError for an unknown
    input or precision.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[[Tensor], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        input: str = "uint8",
        precision: str = "fp32",
    ):
        super().__init__()
        check_choice("input", input, INPUTS)
        check_choice("precision", precision, PRECISIONS)
        self.input = input
        self.dtype = PRECISIONS[precision]
        self.model = model.eval().to(self.dtype)
        self.predict = predict
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        if self.input == "uint8":
            clips = (clips.float() / 255 - self.mean) / self.std
        logits = self.model(clips.to(self.dtype)).float()
        return logits, self.predict(logits)


@dataclass(frozen=True)
class Difference:
    """Differences between an exported graph and PyTorch in float32 on random clips, over all of `SAMPLES`.

    `absolute` is the largest difference of a clip logit, `relative` the same divided by the largest logit,
    `probability` the largest difference of a probability, `equal_top1` the share of videos with the same top-1.
    """

    relative: float
    absolute: float
    probability: float
    equal_top1: float

    def __str__(self) -> str:
        return (
            f"differs from PyTorch by {self.relative:.1e} of the largest logit at most ({self.absolute:.1e}; "
            f"probabilities by {self.probability:.1e}), {self.equal_top1:.0%} of answers equal"
        )


def random_clips(graph: ClipGraph, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Random clips of the given shape, in the dtype that `graph` takes: uniform pixels from the seed."""
    pixels = torch.randint(0, 256, tuple(shape), generator=torch.Generator().manual_seed(seed)).byte()
    return pixels if graph.input == "uint8" else (pixels.float() / 255 - graph.mean) / graph.std


@torch.no_grad()
def reference_outputs(graph: ClipGraph, clip_shape: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(clips, clip logits, probabilities) of PyTorch for each of `SAMPLES`; `clip_shape` is (t, h, w). `graph` should
    be in fp32, so that the difference includes the rounding of a lower precision."""
    batches = [random_clips(graph, (*sample, 3, *clip_shape)) for sample in SAMPLES]
    return [(clips, *graph(clips)) for clips in batches]


def difference(
    run: Callable[[Tensor], tuple[Tensor, Tensor]], expected: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Difference:
    """Compares the outputs of `run` with `expected`, the outputs of `reference_outputs`. Raises UserError if a shape
    differs or a value is not finite."""
    logit_difference, probability_difference, largest, equal, videos = 0.0, 0.0, 0.0, 0, 0
    for clips, expected_logits, expected_probabilities in expected:
        logits, probabilities = run(clips)
        if logits.shape != expected_logits.shape or not bool(logits.isfinite().all()):
            raise UserError(
                f"for clips {list(clips.shape)} the exported graph returns {list(logits.shape)}, but PyTorch "
                f"{list(expected_logits.shape)}, or values that are not finite"
            )
        logit_difference = max(logit_difference, float((logits - expected_logits).abs().max()))
        probability_difference = max(
            probability_difference, float((probabilities - expected_probabilities).abs().max())
        )
        largest = max(largest, float(expected_logits.abs().max()))
        equal += int((probabilities.argmax(dim=-1) == expected_probabilities.argmax(dim=-1)).sum())
        videos += len(expected_probabilities)
    return Difference(logit_difference / max(largest, 1e-12), logit_difference, probability_difference, equal / videos)


def check_difference(difference: Difference, what: str, limit: float) -> None:
    """Raises UserError if a graph differs from the model by more than `limit`."""
    if not difference.relative <= limit:
        raise UserError(
            f"{what} {difference}, more than max_difference={limit:g} allows. Export in a higher precision, or raise "
            "max_difference if the difference is acceptable"
        )


@torch.no_grad()
def trace(graph: ClipGraph, clip_shape: Sequence[int]) -> ExportedProgram:
    """Traces a graph for any number of videos and views, with clips of (t, h, w). It runs without gradients, so that
    activation checkpointing is off. Raises UserError if the model's code cannot be turned into a graph."""
    # sizes that other dimensions are unlikely to have
    example = random_clips(graph, (2, 3, 3, *clip_shape))
    shapes = {"clips": {0: Dim("videos"), 1: Dim("views")}}
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:  # the tracer runs the model's code, which may raise anything
        raise UserError(
            f"{type(graph.model.encoder).__name__} cannot be turned into a graph: {first_line(error)}; "
            "formats=[safetensors] needs no graph"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- an ONNX file as a model ------------------------------------------------------------------------------


class OnnxClassifier(nn.Module):
    """Clips [b n 3 t h w] -> clip logits [b n k], computed on the CPU by the ONNX graph in the file `path`.

    `takes_uint8` tells whether the graph takes uint8 pixels and normalizes them, or takes normalized floats. `metadata`
    is that of the file. `fusion` is the fusion that the caller applies to the clip logits. Raises UserError if the file
    is not a graph of `save_onnx`, if onnxruntime is not installed, and for clips of another size.
    """

    def __init__(self, path: Path, fusion: str):
        super().__init__()
        self.path = path
        self.fusion = fusion
        self.session = onnx_session(path)
        inputs = {argument.name: argument for argument in self.session.get_inputs()}
        outputs = {argument.name: argument for argument in self.session.get_outputs()}
        if set(inputs) != {INPUT_NAME} or set(outputs) != set(OUTPUT_NAMES):
            raise UserError(
                f"{path} was not exported by vidtrain: it takes {', '.join(inputs)} and gives {', '.join(outputs)}"
            )
        self.takes_uint8 = inputs[INPUT_NAME].type == "tensor(uint8)"
        self.clip_shape = tuple(inputs[INPUT_NAME].shape[2:])  # 3 t h w
        self.num_classes = outputs[OUTPUT_NAMES[1]].shape[-1]
        self.metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map

    def forward(self, clips: Tensor) -> Tensor:
        return self.run(clips)[0]

    def run(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Clip logits [b n k] and the probabilities [b k] of the videos, on the device of the clips."""
        if tuple(clips.shape[2:]) != self.clip_shape:
            expected, actual = ("{1} frames at {2}x{3}".format(*shape) for shape in (self.clip_shape, clips.shape[2:]))
            raise UserError(f"{self.path} takes clips of {expected}, not of {actual}: export the model at this size")
        outputs = self.session.run(list(OUTPUT_NAMES), {INPUT_NAME: clips.cpu().numpy()})
        logits, probabilities = (torch.from_numpy(output).to(clips.device) for output in outputs)
        return logits, probabilities


def onnx_session(path: Path) -> Any:
    """An onnxruntime session of a file, on the CPU, with as many threads as torch uses."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"running {path} needs onnxruntime: {install_hint('export')}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise UserError(
            f"onnxruntime cannot run the operators or the precision of {path}: {first_line(error)}"
        ) from error


# --- files ------------------------------------------------------------------------------------------------


def save_program(program: ExportedProgram, path: Path, card: str) -> None:
    """Writes the program, with `card` (JSON) inside as the extra file card.json."""
    with written_whole(path) as temporary:
        torch.export.save(program, temporary, extra_files={"card.json": card})


def program_runner(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function that runs the program in a file of `save_program`."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(clips: Tensor) -> tuple[Tensor, Tensor]:
        return module(clips)

    return run


# --- ONNX -------------------------------------------------------------------------------------------------


def save_onnx(program: ExportedProgram, path: Path, opset: int, metadata: Mapping[str, str]) -> None:
    """Writes a program as an ONNX graph of operator set `opset`, with `metadata` inside. Weights above 1 GiB are
    written to NAME.data beside it. Raises UserError if ONNX, or the operator set, cannot express the program."""
    check_onnx(opset)
    with _quiet():
        try:
            exported = torch.onnx.export(
                program,
                (),
                input_names=[INPUT_NAME],
                output_names=list(OUTPUT_NAMES),
                dynamic_shapes=({0: "videos", 1: "views"},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter's errors are private, and have many types
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            why = f"ONNX cannot express this model: {first_line(cause)}; formats=[torch_export] may work"
            raise UserError(why) from error
    assert exported is not None  # true with dynamo=True
    written = exported.model.opset_imports[""]
    if written != opset:
        raise UserError(
            f"opset={opset} cannot express all layers of this model, which need opset {written}; set opset={written}"
        )
    exported.model.metadata_props.update(metadata)
    if sum(tensor.nbytes for tensor in program.state_dict.values()) > TOO_BIG_FOR_ONE_FILE:
        exported.save(path, external_data=True)
    else:
        with written_whole(path) as temporary:
            exported.save(temporary, external_data=False)


def check_onnx(opset: int) -> None:
    """Raises UserError if the packages for ONNX are not installed, or do not support the operator set."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"exporting to ONNX needs {error.name}: {install_hint('export')}; or leave onnx out of formats"
        ) from error
    newest = onnx.defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= newest:
        raise UserError(
            f"opset={opset} cannot be written: PyTorch exports operators of opset {LEAST_OPSET} or later, and the "
            f"installed onnx supports opset {newest} at most"
        )


# --- safetensors ------------------------------------------------------------------------------------------


def save_weights(model: nn.Module, path: Path, precision: str, metadata: Mapping[str, str]) -> None:
    """Writes the model's state dict with floats in the given precision, reads it back and compares. Raises UserError if
    they differ."""
    dtype = PRECISIONS[precision]
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata))
        temporary.chmod(0o644)  # save_file makes it readable for its owner only
    read = load_file(path)
    if read.keys() != tensors.keys() or not all(torch.equal(read[name], tensors[name]) for name in tensors):
        raise UserError(f"{path} does not hold what was written into it: the disk may be damaged")


# --- files ------------------------------------------------------------------------------------------------


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` at the end. Raises UserError if writing fails."""
    temporary = path.with_name(f".writing.{path.name}")  # torch requires the suffix of `path`
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context that suppresses the exporter's log; failures raise errors anyway."""
    levels = {
        logging.getLogger("torch.onnx"): logging.ERROR,
        logging.getLogger("onnxscript"): logging.CRITICAL,
    }
    before = {logger: logger.level for logger in levels}
    try:
        for logger, level in levels.items():
            logger.setLevel(level)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
