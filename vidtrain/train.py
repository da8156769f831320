"""The training app: compose, check, build, fit, evaluate, and return the metric that it selected on.

python -m vidtrain.train dataset=motion model=vit3d_micro optimizer.lr=3e-4
"""

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vidtrain.app.launch import fail, launch
from vidtrain.errors import Pruned, UserError
from vidtrain.runs import folder as run_folder
from vidtrain.runs import restarts as attempts
from vidtrain.runs.folder import check_names_a_run, with_stored_overrides
from vidtrain.training.ranks.signals import Halt, Stopped

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from pathlib import Path

    from vidtrain.runs.assemble import Parts, RunData
    from vidtrain.training.ranks.distributed import Ranks


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    from vidtrain.app.check import check_run

    return check_run(cfg)


def train(cfg: DictConfig) -> float | None:
    """One run, from the composed configuration to its best value of `trainer.monitor` on val."""
    with Halt() as halt:  # before torch is imported, so that a signal finds us listening
        try:
            return _attempt(cfg, halt)
        except Stopped as stop:  # before there was a folder to note it in
            sys.exit(stop.status)


def _attempt(cfg: DictConfig, halt: Halt) -> float | None:
    from vidtrain.tracking.console import make_console
    from vidtrain.training.ranks.distributed import join_ranks

    with join_ranks(cfg.trainer.device, cfg.trainer.rank_timeout) as ranks:
        console = make_console(ranks.is_main)
        folder = run_folder.choose(cfg, ranks)
        try:
            with ExitStack() as held:
                ranks.on_main(lambda: held.enter_context(run_folder.held(folder)) and None)
                done = ranks.on_main(lambda: run_folder.finished(folder))
                if done:
                    other = "is finished, and was started with other settings"
                    ranks.on_main(lambda: run_folder.check_unchanged(folder, cfg, other))
                    console.info(
                        f"the run in {folder} is finished: best val {done['monitor']} {done['best']:.4f}"
                    )
                    return done["best"]
                if ranks.is_main:
                    held.enter_context(run_folder.attempt(folder))
                attempt = held.enter_context(attempts.attempt(folder, ranks, halt))
                return _train(cfg, ranks, console, folder, halt, attempt)
        except Pruned as ended:  # no fault, but there is no value to return
            console.info(str(ended))
            return None


def _train(
    cfg: DictConfig, ranks: "Ranks", console: Any, folder: "Path", halt: Halt, attempt: attempts.Attempt
) -> float:
    from vidtrain.runs import assemble as build_run
    from vidtrain.runs import report as run_report
    from vidtrain.runs.export import export_run
    from vidtrain.sweeps import trial as sweep_trial
    from vidtrain.training.guards import check_learned
    from vidtrain.training.loop import fit

    run_id = _begin(cfg, ranks, console, folder)
    data = build_run.open_data(cfg, ranks, console, folder)
    sweep_trial.check_objective(folder, data.splits)
    parts = build_run.make_parts(cfg, data, ranks, console, folder)
    _describe_data(data, parts, ranks, console, folder)
    start = build_run.load_model(cfg, data, ranks, console, folder)
    attempt.begin(start.step)
    evaluation = build_run.val_evaluation(cfg, data, parts, start.model.fusion, ranks, console, halt)
    console.info(start.describe())
    console.info(parts.describe(ranks, evaluation.protocol))
    log = build_run.open_log(cfg, ranks, console, folder, start.step)
    status = "failed"
    try:
        ranks.on_main(lambda: log.mirror.start(run_folder.mirrored(folder, run_id, cfg, start.step)))
        by_sweep = run_folder.is_started_by_sweep()
        on_validation = sweep_trial.on_validation(folder, ranks, console, by_sweep)
        record = build_run.Record(
            log=log, console=console, folder=folder, on_validation=on_validation, halt=halt
        )
        run = build_run.assemble(cfg, data, parts, start.model, evaluation, ranks, record)
        state = fit(run, start.resume)
        if parts.settings.one_batch:
            check_learned(evaluation(start.model)[0].metrics, parts.loss, state.total_step)
        result = run_report.report_best(cfg, data, parts, start.model, state, ranks, log, console)
        status = "finished"
        if ranks.is_main:  # last, as a run that ends here is finished all the same
            run_report.draw_pictures(cfg, data, result, state, log, console)
    except Pruned:
        status = "pruned"
        raise
    finally:
        log.close(status)
    run_report.show(result, state, parts.settings.monitor, console)
    if cfg.export.formats or cfg.export.card:
        ranks.on_main(lambda: export_run(cfg, start.model, data.classes, folder, console))
    console.info(
        f"trained {state.total_step} steps in {state.seconds / 60:.1f} minutes; everything lies in {folder}"
    )
    return state.best


def _begin(cfg: DictConfig, ranks: "Ranks", console: Any, folder: "Path") -> str:
    """Sets the process up and records the run in its folder; returns the run's id."""
    import torch

    from vidtrain.build import parts as build
    from vidtrain.tracking.provenance import write_provenance

    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    if cfg.trainer.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(cfg.trainer.deterministic)  # else as a trial before had it
    run_id = ranks.on_main(lambda: run_folder.record(folder, cfg))
    if ranks.is_main:
        write_provenance(folder)
    console.info(f"run folder {folder}")
    return run_id


def _describe_data(data: "RunData", parts: "Parts", ranks: "Ranks", console: Any, folder: "Path") -> None:
    from vidtrain.files.atomic import write_json_atomic

    videos = {name: len(split) for name, split in data.splits.items()}
    counts = ", ".join(f"{name} {count}" for name, count in videos.items())
    console.info(f"dataset {data.name}: {len(data.classes)} classes; videos: {counts}")
    if ranks.is_main:
        about = {"classes": list(data.classes), "videos": videos, "digests": data.digests}
        about["steps_per_epoch"] = parts.steps_per_epoch
        write_json_atomic(folder / "dataset.json", about)
    console.info(parts.about_loss)


def main() -> None:
    try:
        check_names_a_run(sys.argv[1:])
        sys.argv[1:], stored = with_stored_overrides(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    launch("train", train, check, stored)


if __name__ == "__main__":
    main()
