"""The files that an exported model is written into: an ONNX graph, a torch.export program, safetensors."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from vidtrain.errors import UserError
from vidtrain.files.folders import install_hint
from vidtrain.models.exporting import PRECISIONS, first_line

INPUT_NAME, OUTPUT_NAMES = "clips", ("clip_logits", "probabilities")


class OnnxClassifier(nn.Module):
    """Clips [b n 3 t h w] -> clip logits [b n k], by the graph in the file `path`, on the CPU.

    `takes_uint8` tells whether clips are pixels as they are, which the graph normalizes, or normalized floats.
    `metadata` is what the file says of itself. `fusion` is the caller's, who fuses the clip logits; only whether the
    model sees all clips jointly is in the graph.

    Raises UserError for a file that is not such a graph, without onnxruntime, and for clips of another size.
    """

    def __init__(self, path: Path, fusion: str):
        super().__init__()
        self.path = path
        self.fusion = fusion
        self.session = onnx_session(path)
        inputs = {each.name: each for each in self.session.get_inputs()}
        outputs = {each.name: each for each in self.session.get_outputs()}
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
            raise UserError(
                f"{self.path} takes clips of {_spell(self.clip_shape)}, not of {_spell(clips.shape[2:])}: "
                "export the model at this size"
            )
        found = self.session.run(list(OUTPUT_NAMES), {INPUT_NAME: clips.cpu().numpy()})
        logits, chances = (torch.from_numpy(each).to(clips.device) for each in found)
        return logits, chances


def _spell(shape: tuple[int, ...]) -> str:
    channels, frames, height, width = shape
    return f"{frames} frames at {height}x{width}"


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
            f"onnxruntime cannot run {path}, in the operators or the precision that it is in: {first_line(error)}"
        ) from error


def onnx_runner(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What an ONNX file computes: clips to clip logits and probabilities."""
    return OnnxClassifier(path, fusion="").run


LEAST_OPSET = 18  # the operators that PyTorch's exporter writes are those of this version and later
TOO_BIG_FOR_ONE_FILE = 1 << 30  # bytes of weights; an ONNX file ends at 2 GiB


def save_program(program: ExportedProgram, path: Path, card: str) -> None:
    """Writes the program, with `card` (JSON) inside as the extra file card.json."""
    with written_whole(path) as temporary:
        torch.export.save(program, temporary, extra_files={"card.json": card})


def program_runner(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What a file of `save_program` computes, read back from the disk."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(clips: Tensor) -> tuple[Tensor, Tensor]:
        return module(clips)

    return run


# --- ONNX -------------------------------------------------------------------------------------------------


def save_onnx(program: ExportedProgram, path: Path, opset: int, metadata: Mapping[str, str]) -> None:
    """Writes a program as an ONNX graph of operator set `opset`, with `metadata` inside it; weights that are too large
    for one file lie beside it, in a file of the same name and .data at its end.

    Raises UserError where the operator set, or ONNX itself, cannot express the program.
    """
    check_onnx(opset)
    with _quiet():
        try:
            found = torch.onnx.export(
                program,
                (),
                input_names=[INPUT_NAME],
                output_names=list(OUTPUT_NAMES),
                dynamic_shapes=({0: "videos", 1: "views"},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # its own errors are of many kinds, and private
            raise UserError(f"ONNX {_why(error)}; formats=[torch_export] may do") from error
    assert found is not None  # as dynamo=True is said
    written = found.model.opset_imports[""]
    if written != opset:
        raise UserError(
            f"opset={opset} cannot express all layers of this model: what it can be written in is opset {written}; say "
            f"opset={written}"
        )
    found.model.metadata_props.update(metadata)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > TOO_BIG_FOR_ONE_FILE:
        found.save(path, external_data=True)
    else:
        with written_whole(path) as temporary:
            found.save(temporary, external_data=False)


def check_onnx(opset: int) -> None:
    """Raises UserError where the packages for ONNX, or the operator set in them, are absent."""
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
            f"opset={opset} cannot be written: the layers are expressed in operators of opset {LEAST_OPSET} or later, "
            f"and the installed onnx knows those up to {newest}"
        )


def _why(error: BaseException) -> str:
    """The innermost cause of the exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"cannot express this model: {first_line(error)}"


# --- safetensors ------------------------------------------------------------------------------------------


def save_weights(model: nn.Module, path: Path, precision: str, metadata: Mapping[str, str]) -> None:
    """Writes the model's state dict, in which floats are of the given precision, and reads it back to compare.

    Raises UserError for a file that does not hold what was written.
    """
    dtype = PRECISIONS[precision]
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata))
        temporary.chmod(0o644)  # save_file lets nobody else read it
    found = load_file(path)
    if found.keys() != tensors.keys() or not all(torch.equal(found[name], tensors[name]) for name in tensors):
        raise UserError(f"{path} does not hold what was written into it: is the disk sound?")


# --- files ------------------------------------------------------------------------------------------------


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` once it is whole. Raises UserError where it cannot be written."""
    temporary = path.with_name(f".writing.{path.name}")  # torch wants the ending that it knows
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own insides; what matters of them becomes an error here."""
    logger = logging.getLogger("torch.onnx")
    scripts = logging.getLogger("onnxscript")
    levels = logger.level, scripts.level
    logger.setLevel(logging.ERROR)
    scripts.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(levels[0])
        scripts.setLevel(levels[1])
