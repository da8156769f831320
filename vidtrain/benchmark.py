"""Measures where the time of a training run goes, finds its bottleneck, and advises faster settings.

python -m vidtrain.benchmark experiment=motion_baseline trainer.num_workers=4 steps=50
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.app.launch import launch
from vidtrain.config.schemas import BenchmarkConfig
from vidtrain.config.targets import Faults, check_settings, suggest

if TYPE_CHECKING:  # so that --help does not wait seconds for the import of torch
    from vidtrain.benchmarking.advice import Advice, Measured
    from vidtrain.benchmarking.measure import Meter


def check(cfg: DictConfig) -> Faults:
    from vidtrain.app.check import check_run

    faults = check_run(cfg)
    faults += [fault for fault in check_settings(cfg, BenchmarkConfig) if fault not in faults]
    if cfg.phase is not None and not OmegaConf.is_missing(cfg, "stage") and cfg.phase not in cfg.stage:
        faults.append(("phase", f"the stage has no phase {cfg.phase}{suggest(cfg.phase, list(cfg.stage))}"))
    elif not faults:
        name = cfg.phase or next(iter(cfg.stage))
        if OmegaConf.select(cfg, f"stage.{name}.cache_features"):
            why = "trains on cached features, which this program does not measure"
            faults.append((f"stage.{name}.cache_features", f"{name} {why}: set it to false, or choose another phase="))
    return faults


def benchmark(cfg: DictConfig) -> float:
    """Measures the run that `cfg` describes; returns its clips per second."""
    from vidtrain.benchmarking.measure import Meter
    from vidtrain.benchmarking.report import nothing_to_change, show
    from vidtrain.files.atomic import write_json_atomic
    from vidtrain.files.folders import check_writable
    from vidtrain.runs.assemble import open_data
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import join_ranks

    with join_ranks(cfg.trainer.device) as ranks:
        console = make_console(ranks.is_main)
        out = Path(cfg.out or f"outputs/benchmark/{cfg.name}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
        ranks.on_main(lambda: check_writable(out))
        meter = Meter(cfg, open_data(cfg, ranks, console), ranks, console)
        result, measured, advice = _measure(meter)
        show(result, console)
        if not advice:
            console.info(f"advice: {nothing_to_change(measured, result['verdict']['bound'])}")
        if cfg.prove:
            result["proof"] = _prove(meter, advice)
        ranks.on_main(lambda: write_json_atomic(out / "benchmark.json", result))
        console.info(f"all results are in {out / 'benchmark.json'}")
        return result["clips_per_s"]


def _measure(meter: "Meter") -> tuple[dict[str, Any], "Measured", "list[Advice]"]:
    """The content of benchmark.json, and from it the measured rates and the advice."""
    from dataclasses import asdict

    from vidtrain.benchmarking.advice import advise, explore, verdict
    from vidtrain.benchmarking.measure import open_phase
    from vidtrain.benchmarking.report import describe_model, describe_settings, estimate, measure_run

    cfg, data, ranks, console = meter.cfg, meter.data, meter.ranks, meter.console
    phase = open_phase(cfg, data, ranks, console)
    devices = f"{ranks.device.type} x {ranks.world_size}"
    console.info(f"phase {phase.name}, {devices}: {cfg.warmup} steps to warm up, {cfg.steps} timed")
    settings = describe_settings(meter, phase)
    rates, batch = measure_run(meter, phase)
    model = describe_model(meter, phase, rates["clips_per_s"])
    videos = {split: len(manifest) for split, manifest in data.splits.items()}
    planned = estimate(phase.run, phase.name, videos, rates["seconds_per_step"], rates["evaluation_videos_per_s"])
    measured, notes = explore(meter, phase, batch, rates)
    advice = advise(measured)
    result = {
        "name": cfg.name,
        "phase": phase.name,
        **settings,
        "steps": cfg.steps,
        "warmup": cfg.warmup,
        **model,
        **rates,
        "estimate": planned,
        "verdict": asdict(verdict(measured)),
        "measured": asdict(measured),
        "advice": [{"text": change.text, **asdict(change)} for change in advice],
        "notes": notes,
        "proof": None,
    }
    return result, measured, advice


def _prove(meter: "Meter", advice: "list[Advice]") -> dict[str, Any] | None:
    """Measures the run before and after following the first advice that needs no other program."""
    from vidtrain.benchmarking.report import follow, show_proof

    followed = next((change for change in advice if change.first is None), None)
    if followed is None:
        meter.console.info("nothing to prove: no advice that this program can follow by itself")
        return None
    proof = follow(meter, followed, meter.cfg.rounds)
    show_proof(proof, meter.console)
    return proof


def main() -> None:
    launch("benchmark", benchmark, check)


if __name__ == "__main__":
    main()
