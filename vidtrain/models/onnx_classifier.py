"""An exported ONNX graph as a model: the same calls as of a VideoClassifier, computed by onnxruntime."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.files.folders import install_hint
from vidtrain.models.exporting import first_line

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
