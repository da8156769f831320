"""Exports one model of each family, with random weights and clips of its usual shape, and prints the differences.

python experiments/benchmarks/export/bench.py [--models r2plus1d_18,s3d] [--precision fp16]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vidtrain.build import parts as build
from vidtrain.config.schemas import ExportSettings
from vidtrain.config.targets import CONF, register_schemas
from vidtrain.errors import UserError
from vidtrain.models.exporting import OnnxClassifier
from vidtrain.runs.export import export_model, model_spec
from vidtrain.training.distributed import Ranks

# Clips (frames, pixels), and what else the model needs
MODELS = {
    "vit3d_small": (16, 224, ()),
    "videomae_small": (16, 224, ()),
    "vjepa2_vitl": (8, 128, ("model.encoder.depth=4",)),
    "vjepa2_1_vitb": (8, 128, ()),
    "timm_frames": (8, 128, ()),
    "timm_frames_temporal": (8, 128, ()),
    "r3d_18": (16, 112, ()),
    "r2plus1d_18": (16, 112, ()),
    "mc3_18": (16, 112, ()),
    "s3d": (16, 224, ()),
    "resnext3d_18": (8, 112, ()),
    "slow_r50": (8, 224, ()),
    "slowfast_r50": (32, 224, ()),
    "swin3d_t": (16, 112, ()),
    "x3d_s": (13, 160, ()),
    "hiera_b_video": (8, 96, ("model.encoder.depths=[1,1,2,1]",)),
    "mvit_v1_b": (16, 112, ()),
    "mvit_v2_s": (16, 112, ()),
}
CLASSES = [f"class {number}" for number in range(400)]
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="some of them, with commas between")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16")
    parser.add_argument("--threads", type=int, default=2, help="that compute (2)")
    options = parser.parse_args()
    register_schemas()
    torch.set_num_threads(options.threads)
    print(
        "| model | clip | M parameters | ONNX: difference | MB | torch.export: difference | export, s | PyTorch, ms "
        "| onnxruntime, ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.models.split(","):
        print(row(name, options.precision), flush=True)


def row(name: str, precision: str) -> str:
    frames, size, others = MODELS[name]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model={name}", f"clip.frames={frames}", f"clip.size={size}", *others])
    model = build.model(cfg, len(CLASSES), Ranks(torch.device("cpu"))).eval()
    parameters = sum(each.numel() for each in model.parameters()) / 1e6
    clip = f"{frames}x{size}x{size}{' ' + ' '.join(others) if others else ''}"
    settings = OmegaConf.to_object(
        OmegaConf.structured(ExportSettings(formats=["onnx", "torch_export"], precision=precision))
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            card = export_model(
                model_spec(cfg), model, CLASSES, settings, Path(folder), {"weights": "random"}, Silent()
            )
        except UserError as error:
            return f"| {name} | {clip} | {parameters:.1f} | {str(error).splitlines()[0]} | | | | | |"
        seconds = time.perf_counter() - started
        found = card["files"]
        graph = OnnxClassifier(Path(folder) / "model.onnx", "mean_logits")
        pixels = torch.randint(0, 256, (1, 1, 3, frames, size, size), dtype=torch.uint8)
        transform = build.device_transform(cfg, torch.device("cpu"))
        with torch.no_grad():
            eager = milliseconds(lambda: model(transform(pixels)))
        served = milliseconds(lambda: graph(pixels))
    return (
        f"| {name} | {clip} | {parameters:.1f} | {found['onnx']['difference']['relative']:.1e} "
        f"| {found['onnx']['bytes'] / 1e6:.0f} | {found['torch_export']['difference']['relative']:.1e} | {seconds:.0f} "
        f"| {eager:.0f} | {served:.0f} |"
    )


def milliseconds(work) -> float:
    """The median of a few rounds, after one to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[1:])


class Silent:
    """A console that says nothing."""

    def info(self, text: str) -> None:
        pass


if __name__ == "__main__":
    main()
