"""The results of a benchmark: settings, rates, FLOPs, estimated time of a whole run, tables, and a proof of advice."""

import math
import re
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidtrain.benchmarking.advice import Advice, Measured
from vidtrain.benchmarking.measure import Meter, PhaseSteps, Timed, changed, slowest_rank, store_use, summarize
from vidtrain.build import parts as build
from vidtrain.config.references import settled
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.loading.samplers import every_for
from vidtrain.models.classifier import ManyHeads
from vidtrain.runs.assemble import open_data
from vidtrain.runs.frozen_encoder import heads_of
from vidtrain.tracking.console import format_seconds
from vidtrain.training.distributed import PRECISIONS
from vidtrain.training.process import cores
from vidtrain.training.profiling import peak_memory, reset_peak
from vidtrain.training.run import Console, Run
from vidtrain.training.schedules import steps
from vidtrain.training.stages import apply_phase, lora_of

# --- settings, device and model ---------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def describe_settings(meter: Meter, phase: PhaseSteps) -> dict[str, Any]:
    """The device, and the settings that matter most for speed."""
    cfg, ranks, trainer = meter.cfg, meter.ranks, phase.run.settings
    return {
        "device": {
            "type": ranks.device.type,
            "name": device_name(ranks.device),
            "ranks": ranks.world_size,
            "cores": cores(),
            "cores_per_rank": build.share_of_cores(ranks),
            "torch": str(torch.__version__),
        },
        "settings": {
            **{key: getattr(trainer, key) for key in ("batch_size", "accumulation", "precision", "compile", "ema")},
            "num_workers": meter.workers,
            "cpu_threads": torch.get_num_threads(),
            "prepared": cfg.data.prepared,
            "clip": settled(cfg.clip),
        },
    }


def describe_model(meter: Meter, phase: PhaseSteps, clips_per_s: float) -> dict[str, Any]:
    """Parameters, FLOPs, and the share of the device's peak FLOP/s that the steps reach."""
    cfg, ranks = meter.cfg, meter.ranks
    parameters = list(phase.trained.parameters())
    # FLOPs that activation checkpointing repeats are not counted, as is usual for utilization
    if "activation_checkpointing" in cfg.model.encoder:
        cfg = changed(cfg, {"model.encoder.activation_checkpointing": False})
    with torch.device("meta"):
        model = build.instantiate_component(cfg.model, num_classes=phase.model.num_classes)
        clip = torch.empty(1, 1, 3, cfg.clip.frames, *build.clip_size(cfg))
    settings, lora = phase.phase.settings, lora_of(phase.run.phases)
    if lora is not None:
        build.adapters_of(lora).add_to(model)
    apply_phase(model, settings)
    trained = model if settings.heads is None else ManyHeads(model, heads_of(model, settings))
    forward, training = count_flops(trained, clip)
    precision = phase.run.settings.precision
    peak = cfg.peak_tflops * 1e12 if cfg.peak_tflops else known_peak(device_name(ranks.device), precision)
    per_second = training * clips_per_s / ranks.world_size
    product = matmul_rate(ranks.device, PRECISIONS[precision])
    return {
        "parameters": {
            "total": sum(parameter.numel() for parameter in parameters),
            "trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        },
        "flops": {
            "forward_per_clip": forward,
            "training_per_clip": training,
            "per_second_and_rank": per_second,
            "peak": peak,
            "utilization": per_second / peak if peak else None,
            "matmul": product,
            "share_of_matmul": per_second / product,
        },
    }


# --- measurements -----------------------------------------------------------------------------------------


def measure_run(meter: Meter, phase: PhaseSteps) -> tuple[dict[str, Any], Batch]:
    """Measures the run with its own settings: the model alone, the loader alone, and training steps, taking turns.

    Returns the results, whose times are those of the slowest rank, and the batch on which the model alone ran."""
    cfg, ranks = meter.cfg, meter.ranks
    with meter.batches(meter.workers) as batches:
        batch = next(batches)
    nothing = Timed([], 0, 0.0)
    compute, loader, timed = nothing, nothing, nothing
    reset_peak(ranks.device)
    for count in (cfg.steps // 2, cfg.steps - cfg.steps // 2):
        # The model runs while no workers do. The loader's measurement takes all that was read ahead, so that the steps
        # after it begin without batches in store
        compute += meter.compute(phase, batch)
        with meter.batches(meter.workers) as batches:
            loader += meter.loader(meter.workers, batches)
            timed += meter.steps(phase, batches, count)
            memory = ranks.gather_objects(peak_memory(ranks.device))
    by_rank = ranks.gather_objects(summarize(timed.parts))
    slowest = slowest_rank(by_rank)
    seconds = max(ranks.gather_objects(timed.seconds)) / cfg.steps
    copied = sum(value.nbytes for value in batch if isinstance(value, Tensor)) * cfg.trainer.accumulation
    on_gpu = ranks.device.type == "cuda"
    return {
        "slowest_rank": slowest,
        "parts": by_rank[slowest],
        "by_rank": by_rank,
        "seconds_per_step": seconds,
        "steps_per_s": 1 / seconds,
        "clips_per_s": meter.rate(timed),
        "clips_per_step": sum(ranks.gather_objects(timed.clips)) / cfg.steps,
        "alone": {
            "compute": meter.rate(compute),
            "loader": meter.rate(loader),
            "transfer_bytes_per_s": copied / by_rank[slowest]["transfer"]["mean"] if on_gpu else None,
        },
        "faults": sum(ranks.gather_objects(int(phase.phase.sums.faults))),
        "memory": memory,
        "store": store_use(ranks.gather_objects(loader)),
        "evaluation_videos_per_s": meter.evaluation(phase),
    }, batch


# --- tables -----------------------------------------------------------------------------------------------


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the tables, the bottleneck and the advice."""
    parts = [
        (name, *(1000 * values[key] for key in ("mean", "median", "p25", "p75")), f"{values['share']:.1%}")
        for name, values in result["parts"].items()
    ]
    ranks, planned, flops = result["device"]["ranks"], result["estimate"], result["flops"]
    of_rank = f", rank {result['slowest_rank']} of {ranks}, the slowest" if ranks > 1 else ""
    title = f"{result['steps']} steps of phase {result['phase']}{of_rank}: milliseconds"
    console.table(title, ("part", "mean", "median", "25%", "75%", "share"), parts)
    gflops = f"forward {flops['forward_per_clip'] / 1e9:.4g}, training {flops['training_per_clip'] / 1e9:.4g}"
    rows = [
        ("steps/s", f"{result['steps_per_s']:.4g}"),
        ("clips/s", f"{result['clips_per_s']:.4g}"),
        ("loader alone, clips/s", f"{result['alone']['loader']:.4g}"),
        ("model alone, clips/s", f"{result['alone']['compute']:.4g}"),
        ("evaluation, videos/s", f"{result['evaluation_videos_per_s']:.4g}"),
        ("an epoch's training", format_seconds(planned["epoch_training_s"])),
        ("an evaluation", format_seconds(planned["evaluation_s"])),
        ("the whole run", format_seconds(planned["total_s"])),
        ("parameters", f"{result['parameters']['total']:,}, trained {result['parameters']['trained']:,}"),
        ("GFLOPs a clip", gflops),
        ("arithmetic", _arithmetic(flops)),
        ("peak memory", _memory_text(result["memory"][result["slowest_rank"]])),
    ]
    if store := result["store"]:
        taken = f"{store['requests_per_clip']:.3g} requests and {store['mb_per_clip']:.3g} MB a clip"
        rows.append(("the store", f"{taken}; loaders wait {store['share']:.0%} of their time for it"))
    if result["faults"]:
        rows.append(("unreadable videos", str(result["faults"])))
    console.table("the run", ("", ""), rows)
    console.info(f"the whole run: {planned['holds']}")
    console.info(result["verdict"]["text"])
    for advice in result["advice"]:
        changes = f"; {advice['changes']}" if advice["changes"] else ""
        console.info(
            f"advice: {advice['text']}{_before(advice)}: {advice['clips_per_s']:.4g} clips/s expected, "
            f"{advice['gain']:.2f} times as fast ({advice['basis']}){changes}"
        )
    for note in result["notes"]:
        console.info(f"note: {note}")


def _before(advice: Mapping[str, Any]) -> str:
    """The command that must be run first, if any: vidtrain.prepare, for a copy with a name such as short256_gop12."""
    if not advice["first"]:
        return ""
    short_side, gop = advice["settings"]["data.prepared"].removeprefix("short").split("_gop")
    return f", after python -m {advice['first']} dataset=... short_side={short_side} gop={gop}"


def _arithmetic(flops: Mapping[str, Any]) -> str:
    text = f"{flops['per_second_and_rank'] / 1e12:.4g} TFLOP/s"
    if flops["utilization"] is not None:
        text += f", {flops['utilization']:.1%} of the peak of {flops['peak'] / 1e12:.4g}"
    return f"{text}; {flops['share_of_matmul']:.1%} of the rate of a large matrix product"


def _memory_text(memory: Mapping[str, int | None]) -> str:
    mb = {name: f"{size / 1e6:,.0f}" for name, size in memory.items() if size}
    parts = []
    if "gpu_total" in mb:
        reserved = f"{mb.get('gpu_reserved', '0')} reserved of {mb['gpu_total']}"
        parts.append(f"GPU {mb.get('gpu_allocated', '0')} MB allocated, {reserved}")
    parts.append(f"process {mb['process']} MB")
    return ", ".join(parts + ([f"workers {mb['workers']} MB"] if "workers" in mb else []))


def show_proof(proof: Mapping[str, Any], console: Console) -> None:
    rounds = enumerate(zip(proof["before"], proof["after"], strict=True), 1)
    rows = [(str(number), before, after, after / before) for number, (before, after) in rounds]
    rows.append(("median", proof["median_before"], proof["median_after"], proof["gain"]))
    title = f"following {proof['followed']}: clips/s, in turn"
    console.table(title, ("round", "before", "after", "times"), rows)
    console.info(f"expected {proof['expected_gain']:.2f} times as fast, measured {proof['gain']:.2f} times")


def follow(meter: Meter, advice: Advice, rounds: int) -> dict[str, Any]:
    """Tests `advice`: new runs without and with it take turns. Returns the clips per second of every round, and their
    medians."""
    changed_cfg, data = changed(meter.cfg, advice.settings), meter.data
    if any(key.startswith(("data.", "dataset.")) for key in advice.settings):
        data = open_data(changed_cfg, meter.ranks, meter.console)
    other = Meter(changed_cfg, data, meter.ranks, meter.console)
    before, after = [], []
    for _ in range(rounds):
        before.append(meter.run())
        after.append(other.run())
    return {
        "followed": advice.text,
        "expected_clips_per_s": advice.clips_per_s,
        "expected_gain": advice.gain,
        "before": before,
        "after": after,
        "median_before": statistics.median(before),
        "median_after": statistics.median(after),
        "gain": statistics.median(later / earlier for earlier, later in zip(before, after, strict=True)),
    }


LARGE_OPTIMIZER = 0.25  # above this share of a step's work, larger batches are suggested for the optimizer
NO_FASTER_SETTING = {
    "store": "no tried setting is faster. These would be: data.cache=FOLDER on a disk of this machine, from the second "
    "epoch on, smaller videos (python -m vidtrain.prepare), or a store that is nearer",
    "decoding": "no tried setting is faster. These would be: fewer frames to decode (clip.frame_step, clip.frames), "
    "clip.repeated_augmentation=2, which trains on each decoded clip twice, smaller videos, or more cores",
    "cores": "no tried setting is faster, as all cores are busy. More cores or a smaller model would be",
    "transfer": "clips are already copied as uint8 from page-locked memory; fewer or smaller frames (clip) would help",
    "balanced": "loader and model are equally fast: a faster run needs both a faster loader and a faster model",
    "compute": "no tried setting is faster. A smaller model, smaller clips or another device would be",
}


def nothing_to_change(m: Measured, bound: str) -> str:
    """A hint for a run that no tried setting makes faster."""
    share = m.parts["optimizer"] / (sum(m.parts.values()) - m.parts["load"])
    if bound == "compute" and share > LARGE_OPTIMIZER:
        return (
            f"the optimizer takes {share:.0%} of a step's work, which a larger trainer.batch_size would spread over "
            "more clips"
        )
    return NO_FASTER_SETTING[bound]


# --- FLOPs ------------------------------------------------------------------------------------------------

# (pattern of the device's name, dense peak TFLOP/s of tensor cores in 16 bits, and of float32 without TensorFloat-32),
# from NVIDIA's data sheets. The first matching pattern counts.
PEAKS = (
    (r"\bH200\b", 989.0, 67.0),
    (r"\bH100 PCIe\b", 756.0, 51.0),
    (r"\bH100\b", 989.0, 67.0),
    (r"\bA100\b", 312.0, 19.5),
    (r"\bL40S\b", 362.0, 91.6),
    (r"\bL4\b", 121.0, 30.3),
    (r"\bA40\b", 149.7, 37.4),
    (r"\bA10\b", 125.0, 31.2),
    (r"\bV100\b", 125.0, 15.7),
    (r"\bT4\b", 65.0, 8.1),
)
MATMUL = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices whose product is timed


def _convolution_backward(
    grad_shape, input_shape, weight_shape, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups,
    output_mask, out_shape=None, **_,
) -> int:  # fmt: skip
    """FLOPs of a convolution's backward pass: the gradients of input and weight cost as much as the forward pass each.

    PyTorch's own formula counts grouped convolutions as dense ones.
    """
    positions = math.prod(input_shape if transposed else grad_shape)
    return 2 * positions * math.prod(weight_shape[1:]) * sum(output_mask[:2])


FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}


def count_flops(model: nn.Module, clip: torch.Tensor) -> tuple[int, int]:
    """FLOPs of one forward pass of `clip` float [1 n c t h w], and of a forward and backward pass.

    Only matrix products and convolutions count, with two FLOPs per multiply-add. Operations that are recomputed in the
    backward pass count each time. With model and clip on the meta device, this takes neither time nor memory.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # FlopCounterMode does not work under no_grad
    # On some devices fused attention is not counted; the math backend consists of matrix products, which are
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        model(clip)
    for parameter in trained:
        parameter.requires_grad_(True)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with sdpa_kernel(SDPBackend.MATH), counter as both:
        model(clip).float().sum().backward()
    model.zero_grad(set_to_none=True)
    return forward.get_total_flops(), both.get_total_flops()


def known_peak(name: str, precision: str) -> float | None:
    """Peak FLOP/s of the GPU `name` in `precision` (fp32, bf16, fp16); None if it is not known."""
    for pattern, half, single in PEAKS:
        if re.search(pattern, name):
            return (single if precision == "fp32" else half) * 1e12
    return None


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s that a product of two large matrices reaches on this device now: the best of `repeats`."""
    size = MATMUL[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        started = time.perf_counter()
        _ = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


# --- a whole run ------------------------------------------------------------------------------------------


def estimate(run: Run, measured: str, videos: Mapping[str, int], seconds: float, videos_per_s: float) -> dict[str, Any]:
    """Estimated seconds of an epoch, an evaluation and the whole run, and what they include (`holds`).

    A step takes `seconds` in the phase `measured`, and is assumed to take as long in the others. `videos` is the number
    of videos of each split; an evaluation processes `videos_per_s` of them.
    """
    settings, steps_per_epoch = run.settings, run.steps_per_epoch

    def evaluation_s(split: str) -> float:
        every = every_for(videos[split], settings.max_eval_videos)
        return math.ceil(videos[split] / every) / videos_per_s

    evaluation = evaluation_s("val") * (1 if settings.ema is None else 2)
    training = evaluations = 0
    for phase in run.phases.values():
        total = steps(phase.duration, settings.epochs * steps_per_epoch, steps_per_epoch)
        training += total
        evaluations += math.ceil(total / max(1, steps(settings.eval_every, total, steps_per_epoch)))
    closing = evaluation_s("test" if "test" in videos else "val")
    others = ", ".join(name for name in run.phases if name != measured)
    assumed = f"; a step of {others} is assumed to take as long as one of {measured}" if others else ""
    early = "" if settings.patience is None else "; a phase may end early"
    return {
        "steps_per_epoch": steps_per_epoch,
        "steps": training,
        "epoch_training_s": steps_per_epoch * seconds,
        "evaluation_s": evaluation,
        "evaluations": evaluations,
        "final_evaluation_s": closing,
        "total_s": training * seconds + evaluations * evaluation + closing,
        "holds": "includes training steps, validations and the final evaluation, but not checkpoints, compiling and "
        f"the start of workers{assumed}{early}",
    }
