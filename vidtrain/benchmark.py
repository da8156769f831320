"""Measures where the time of a training run goes, says what bounds it and which setting to change.

python -m vidtrain.benchmark experiment=motion_baseline trainer.num_workers=4 steps=50
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.app.launch import launch
from vidtrain.config.references import settled
from vidtrain.config.targets import suggest

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.benchmarking.steps import PhaseSteps
    from vidtrain.training.ranks.distributed import Ranks

LEAST = {"steps": 2, "warmup": 0, "rounds": 1}
MB = 1e6


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    from vidtrain.app.check import check_run

    faults = check_run(cfg)
    for key, least in LEAST.items():
        if cfg[key] < least:
            faults.append((key, f"{cfg[key]} must be {least} or more"))
    if cfg.peak_tflops is not None and not cfg.peak_tflops > 0:
        faults.append(("peak_tflops", f"{cfg.peak_tflops} must be above 0"))
    if cfg.phase is not None and not OmegaConf.is_missing(cfg, "stage") and cfg.phase not in cfg.stage:
        faults.append(("phase", f"the stage has no phase {cfg.phase}{suggest(cfg.phase, list(cfg.stage))}"))
    elif not faults:
        name = cfg.phase or next(iter(cfg.stage))
        if OmegaConf.select(cfg, f"stage.{name}.cache_features"):
            why = "trains on features that are read from a cache, which this program does not measure"
            faults.append((f"stage.{name}.cache_features", f"{name} {why}: give false, or another phase="))
    return faults


def benchmark(cfg: DictConfig) -> float:
    """Measures the run that `cfg` describes; returns its clips per second."""
    from dataclasses import asdict

    from vidtrain.benchmarking.advice import advise, nothing_to_change, verdict
    from vidtrain.benchmarking.estimate import estimate
    from vidtrain.benchmarking.run import Meter, measure, open_phase, phase_name
    from vidtrain.benchmarking.variants import explore, follow
    from vidtrain.files.atomic import write_json_atomic
    from vidtrain.files.folders import check_writable
    from vidtrain.runs.assemble import open_data
    from vidtrain.tracking.console import make_console
    from vidtrain.training.ranks.distributed import join_ranks

    with join_ranks(cfg.trainer.device) as ranks:
        console = make_console(ranks.is_main)
        out = Path(cfg.out or f"outputs/benchmark/{cfg.name}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
        ranks.on_main(lambda: check_writable(out))
        data = open_data(cfg, ranks, console)
        phase = open_phase(cfg, data, ranks, console)
        meter = Meter(cfg, data, ranks, console)
        settings = settings_of(cfg, phase, meter.workers)
        console.info(
            f"phase {phase_name(cfg)}, {ranks.device.type} x {ranks.world_size}: {cfg.warmup} steps to warm up, "
            f"{cfg.steps} timed"
        )

        found, batch = measure(meter, phase)
        model = describe_model(cfg, phase, ranks, found)
        planned = estimate(
            phase.run.phases,
            phase.run.settings,
            phase.run.steps_per_epoch,
            {name: len(split) for name, split in data.splits.items()},
            phase_name(cfg),
            found["seconds_per_step"],
            found["evaluation_videos_per_s"],
        )
        measured, notes = explore(meter, phase, batch, found)
        why = verdict(measured)
        advice = advise(measured)
        result = {
            "name": cfg.name,
            "phase": phase_name(cfg),
            "device": describe_device(ranks),
            "settings": settings,
            "steps": cfg.steps,
            "warmup": cfg.warmup,
            **model,
            **found,
            "estimate": planned,
            "verdict": {"bound": why.bound, "text": why.text},
            "measured": asdict(measured),
            "advice": [{"text": each.text, **asdict(each)} for each in advice],
            "notes": notes,
            "proof": None,
        }
        show(result, console)
        if not advice:
            console.info(f"advice: {nothing_to_change(measured, why.bound)}")
        followed = next((each for each in advice if each.first is None), None)
        del phase, batch
        if cfg.prove and followed is not None:
            result["proof"] = follow(meter, followed, cfg.rounds)
            show_proof(result["proof"], console)
        elif cfg.prove:
            console.info("nothing to prove: no advice that this program can follow by itself")
        ranks.on_main(lambda: write_json_atomic(out / "benchmark.json", result))
        console.info(f"everything lies in {out / 'benchmark.json'}")
        return found["clips_per_s"]


# --- the report --------------------------------------------------------------------------------------------


def settings_of(cfg: DictConfig, phase: "PhaseSteps", workers: int) -> dict[str, Any]:
    """The settings that a reader of the numbers asks for first."""
    import torch

    trainer = phase.run.settings
    return {
        "batch_size": trainer.batch_size,
        "accumulation": trainer.accumulation,
        "precision": trainer.precision,
        "compile": trainer.compile,
        "num_workers": workers,
        "cpu_threads": torch.get_num_threads(),
        "ema": trainer.ema,
        "prepared": cfg.data.prepared,
        "clip": settled(cfg.clip),
    }


def describe_device(ranks: "Ranks") -> dict[str, Any]:
    import torch

    from vidtrain.build import parts as build
    from vidtrain.training.ranks.rendezvous import cores

    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    return {
        "type": ranks.device.type,
        "name": name,
        "ranks": ranks.world_size,
        "cores": cores(),
        "cores_per_rank": build.share_of_cores(ranks),
        "torch": str(torch.__version__),
    }


def describe_model(
    cfg: DictConfig, phase: "PhaseSteps", ranks: "Ranks", found: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameters, FLOPs, and how much of the device's arithmetic the steps use."""
    import torch

    from vidtrain.benchmarking.flops import count_flops, known_peak, matmul_rate
    from vidtrain.benchmarking.run import changed, phase_name
    from vidtrain.build import parts as build
    from vidtrain.features.frozen_encoder import heads_of
    from vidtrain.models.classifier import ManyHeads
    from vidtrain.training.ranks.distributed import PRECISIONS
    from vidtrain.training.stages import apply_phase

    own = list(phase.trained.parameters())
    parameters = {
        "total": sum(each.numel() for each in own),
        "trained": sum(each.numel() for each in own if each.requires_grad),
    }
    # a model's arithmetic is the same whether activations are kept or made again
    kept = "activation_checkpointing" in cfg.model.encoder
    cfg = changed(cfg, {"model.encoder.activation_checkpointing": False}) if kept else cfg
    with torch.device("meta"):
        model = build.instantiate_component(cfg.model, num_classes=phase.model.num_classes)
        clip = torch.empty(1, 1, 3, cfg.clip.frames, *build.clip_size(cfg))
    settings = phase.run.phases[phase_name(cfg)]
    apply_phase(model, settings)
    trained = model if settings.heads is None else ManyHeads(model, heads_of(model, settings))
    forward, both = count_flops(trained, clip)
    precision = phase.run.settings.precision
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ""
    peak = cfg.peak_tflops * 1e12 if cfg.peak_tflops else known_peak(name, precision)
    per_second = both * found["clips_per_s"] / ranks.world_size
    product = matmul_rate(ranks.device, PRECISIONS[precision])
    return {
        "parameters": parameters,
        "flops": {
            "forward_per_clip": forward,
            "training_per_clip": both,
            "per_second_and_rank": per_second,
            "peak": peak,
            "utilization": per_second / peak if peak else None,
            "matmul": product,
            "share_of_matmul": per_second / product,
        },
    }


def show(result: Mapping[str, Any], console: Any) -> None:
    """The tables and the verdict."""
    from vidtrain.tracking.console import format_seconds

    ms = [
        (name, *(1000 * values[key] for key in ("mean", "median", "p25", "p75")), f"{values['share']:.1%}")
        for name, values in result["parts"].items()
    ]
    ranks = result["device"]["ranks"]
    which = f", rank {result['slowest_rank']} of {ranks}, the slowest" if ranks > 1 else ""
    title = f"{result['steps']} steps of phase {result['phase']}{which}: milliseconds"
    console.table(title, ("part", "mean", "median", "25%", "75%", "share"), ms)
    planned, flops, memory = result["estimate"], result["flops"], result["memory"][result["slowest_rank"]]
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
        (
            "GFLOPs a clip",
            f"forward {flops['forward_per_clip'] / 1e9:.4g}, training {flops['training_per_clip'] / 1e9:.4g}",
        ),
        ("arithmetic", arithmetic(flops)),
        ("peak memory", memory_text(memory)),
    ]
    if result["faults"]:
        rows.append(("unreadable videos", str(result["faults"])))
    console.table("the run", ("", ""), rows)
    console.info(f"the whole run: {planned['holds']}")
    console.info(result["verdict"]["text"])
    for each in result["advice"]:
        first = f", after python -m {each['first']} {prepare_settings(each)}" if each["first"] else ""
        changes = f"; {each['changes']}" if each["changes"] else ""
        console.info(
            f"advice: {each['text']}{first}: {each['clips_per_s']:.4g} clips/s expected, {each['gain']:.2f} times as "
            f"fast ({each['resting']}){changes}"
        )
    for note in result["notes"]:
        console.info(f"note: {note}")


def prepare_settings(advice: Mapping[str, Any]) -> str:
    """The settings of the preparing program that make a copy of this name, such as short256_gop12."""
    short_side, gop = advice["settings"]["data.prepared"].removeprefix("short").split("_gop")
    return f"dataset=... short_side={short_side} gop={gop}"


def arithmetic(flops: Mapping[str, Any]) -> str:
    text = f"{flops['per_second_and_rank'] / 1e12:.4g} TFLOP/s"
    if flops["utilization"] is not None:
        text += f", {flops['utilization']:.1%} of the peak of {flops['peak'] / 1e12:.4g}"
    return f"{text}; {flops['share_of_matmul']:.1%} of what a large matrix product reaches"


def memory_text(memory: Mapping[str, int | None]) -> str:
    parts = []
    if memory["gpu_total"]:
        parts.append(
            f"GPU {memory['gpu_allocated'] / MB:,.0f} MB allocated, {memory['gpu_reserved'] / MB:,.0f} reserved of "
            f"{memory['gpu_total'] / MB:,.0f}"
        )
    parts.append(f"process {memory['process'] / MB:,.0f} MB")
    if memory["workers"]:
        parts.append(f"workers {memory['workers'] / MB:,.0f} MB")
    return ", ".join(parts)


def show_proof(proof: Mapping[str, Any], console: Any) -> None:
    rounds = list(zip(proof["before"], proof["after"], strict=True))
    rows = [(str(number), before, after, after / before) for number, (before, after) in enumerate(rounds, 1)]
    rows.append(("median", proof["median_before"], proof["median_after"], proof["gain"]))
    console.table(
        f"following {proof['followed']}: clips/s, in turn", ("round", "before", "after", "times"), rows
    )
    console.info(f"expected {proof['expected_gain']:.2f} times as fast, measured {proof['gain']:.2f} times")


def main() -> None:
    launch("benchmark", benchmark, check)


if __name__ == "__main__":
    main()
