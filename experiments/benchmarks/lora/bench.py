"""Memory of a training step with adapters (LoRA) beside that of fine-tuning everything.

python experiments/benchmarks/lora/bench.py [--rank 16] [--rounds 3]

ViT-B is measured on the CPU, each way in a process of its own. ViT-L and ViT-g are counted on the meta device, which
holds no numbers: weights, gradients and Adam's two averages, all in float32, of the encoder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vidtrain.build import parts as build
from vidtrain.config.references import to_phases
from vidtrain.config.targets import CONF, register_schemas
from vidtrain.models.classifier import VideoClassifier
from vidtrain.training.distributed import Ranks
from vidtrain.training.optimizers import OptimizerSet
from vidtrain.training.run import PhaseSettings
from vidtrain.training.stages import apply_phase, lora_of, set_train_mode

WAYS = ("full", "lora")
CLASSES = 174
FLOAT = 4  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="of ViT-B, each way in turn (3)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    register_schemas()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(options.measure, options.rank)))
        return
    print("| ViT-B/16, one clip of 16x224x224 | trains, M | peak, MiB | optimizer state, MiB |")
    print("|---|---|---|---|")
    found = {way: [_measured(options, way) for _ in range(options.rounds)] for way in WAYS}
    for way, rounds in found.items():
        peak, first = statistics.median(row["peak"] for row in rounds), rounds[0]
        print(f"| {way} | {first['trained'] / 1e6:.2f} | {peak:.0f} | {first['state']:.1f} |")
    print("\n| encoder | way | weights, GB | gradients, GB | Adam, GB | together, GB |\n|---|---|---|---|---|---|")
    for model in ("vit3d_base", "vjepa2_vitl", "vjepa2_vitg"):
        for way in WAYS:
            row = count(model, way, options.rank)
            cells = " | ".join(f"{value / 1e9:.2f}" for value in (*row, sum(row)))
            print(f"| {model} | {way} | {cells} |")


def configured(model: str, way: str, rank: int) -> tuple[DictConfig, PhaseSettings]:
    """The configuration of a run, and its one phase."""
    stage = ["stage=full"] if way == "full" else ["stage=lora", f"stage.lora.lora.rank={rank}",
                                                  f"stage.lora.lora.alpha={2 * rank}"]  # fmt: skip
    clip = ["clip.size=224", "clip.frames=16", "model.encoder.activation_checkpointing=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model={model}", *clip, *stage])
    [phase] = to_phases(cfg.stage).values()
    return cfg, phase


def adapted(model: VideoClassifier, phase: PhaseSettings) -> VideoClassifier:
    lora = lora_of({"phase": phase})
    if lora is not None:
        build.adapters_of(lora).add_to(model)
    apply_phase(model, phase)
    return model


def measure(way: str, rank: int) -> dict[str, float]:
    """Two optimizer steps of ViT-B: peak MiB above the memory before the model was built, and other figures."""
    cfg, phase = configured("vit3d_base", way, rank)
    clip, label = torch.randn(1, 1, 3, 16, 224, 224), torch.zeros(1, dtype=torch.int64)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # from here on the kernel notes a new peak
    model = adapted(build.model(cfg, CLASSES, Ranks(torch.device("cpu"))), phase)
    set_train_mode(model)
    optimizers = OptimizerSet.make(build.instantiate_component(cfg.optimizer), model, phase, "cpu", "fp32")
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(model(clip)[:, 0], label)
        optimizers.backward(loss[None])
        optimizers.clip(1.0, "norm")
        optimizers.step()
    state = optimizers.state_dicts()["optimizer"]["state"].values()
    held = sum(tensor.nbytes for entry in state for tensor in entry.values() if tensor.ndim)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    peak = _resident("VmHWM") - before
    return {"peak": peak, "state": held / 2**20, "trained": trained}


def count(option: str, way: str, rank: int) -> tuple[int, int, int]:
    """Bytes of an encoder's weights, their gradients and Adam's averages."""
    cfg, phase = configured(option, way, rank)
    encoder = adapted(build.model_without_memory(cfg), phase).encoder
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in encoder.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return FLOAT * sum(size for size, _ in sizes), FLOAT * trained, 2 * FLOAT * trained


def _measured(options: argparse.Namespace, way: str) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        f"--rank={options.rank}",
        f"--threads={options.threads}",
        "--measure",
        way,
    ]
    # memory that is freed goes back at once, so that what is resident is what is used
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _resident(key: str) -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


if __name__ == "__main__":
    main()
