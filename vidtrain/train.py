"""The training program: composes, checks, builds, fits, evaluates, and returns the best value of trainer.monitor.

python -m vidtrain.train dataset=motion model=vit3d_micro optimizer.lr=3e-4
"""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vidtrain.app.launch import fail, launch, warn
from vidtrain.config.references import to_settings
from vidtrain.config.renames import rename_arguments
from vidtrain.config.schemas import ExportSettings
from vidtrain.errors import Pruned, UserError, pluralize
from vidtrain.runs import folder as run_folder
from vidtrain.runs.attempts import RunAttempt, run_attempt
from vidtrain.training.process import PreemptionHandler, Stopped

if TYPE_CHECKING:  # so that --help does not wait seconds for the import of torch
    from vidtrain.runs.assemble import Goal, Parts, RunData, Start
    from vidtrain.tracking.console import Console, NullConsole
    from vidtrain.tracking.run_log import RunLog
    from vidtrain.training.phases import TrainState


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    from vidtrain.app.check import check_run

    return check_run(cfg)


def train(cfg: DictConfig) -> float | None:
    """Trains one run; returns its best value of `trainer.monitor` on val, or None if a sweep pruned it."""
    with PreemptionHandler() as preemption:  # entered before torch is imported, so that no signal is missed
        try:
            return _train_or_recall(cfg, preemption)
        except Stopped as stop:  # the signal came before the run's folder could record it
            sys.exit(stop.status)


def _train_or_recall(cfg: DictConfig, preemption: PreemptionHandler) -> float | None:
    """Trains the run unless it is finished already; returns its best value, or None if it was pruned."""
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import join_ranks

    with join_ranks(cfg.trainer.device, cfg.trainer.rank_timeout) as ranks:
        console = make_console(ranks.is_main)
        folder = run_folder.choose(cfg.run_dir, cfg.name, ranks)
        try:
            with ExitStack() as stack:
                ranks.on_main(lambda: stack.enter_context(run_folder.held(folder)) and None)
                run_folder.keep_published(folder, cfg, ranks)
                summary = ranks.on_main(lambda: run_folder.finished(folder))
                if summary:
                    why = "is finished, and was started with other settings"
                    ranks.on_main(lambda: run_folder.check_unchanged(folder, cfg, why))
                    best = f"best val {summary['monitor']} {summary['best']:.4f}"
                    console.info(f"the run in {folder} is finished: {best}")
                    return summary["best"]
                if ranks.is_main:
                    stack.enter_context(run_folder.attempt(folder))
                attempt = stack.enter_context(run_attempt(folder, ranks, preemption))
                return _train(cfg, attempt, console, preemption)
        except Pruned as ending:  # not an error, but there is no value to return
            console.info(str(ending))
            return None


def _train(
    cfg: DictConfig, attempt: RunAttempt, console: "Console | NullConsole", preemption: PreemptionHandler
) -> float | None:
    """The stages of a run: data, model, fit, report."""
    from vidtrain.runs import assemble
    from vidtrain.runs.export import export_run, model_spec
    from vidtrain.runs.report import goal_of
    from vidtrain.sweeps.record import check_objective

    ranks, folder = attempt.ranks, attempt.folder
    run_id = assemble.set_up(cfg, ranks, console, folder)
    data = assemble.open_data(cfg, ranks, console, folder)
    check_objective(folder, data.splits)
    parts = assemble.make_parts(cfg, data, ranks, console, folder)
    assemble.describe_data(data, parts, ranks, console, folder)
    start = assemble.load_model(cfg, data, ranks, console, folder)
    attempt.begin(start.step)
    goal = goal_of(cfg, data, parts, start.model, ranks, console, preemption)
    console.info(f"{start.describe()}\n{parts.describe(ranks, goal.protocol)}")
    log = assemble.open_log(cfg, ranks, console, folder, start.step)
    status = "failed"
    try:
        ranks.on_main(lambda: log.loggers.start(run_folder.logged_run(folder, run_id, cfg, start.step)))
        state = _fit(cfg, data, parts, start, goal, log)
        goal.report(state, log)
        status = "finished"
        if ranks.is_main:  # last: a run that is killed here counts as finished
            goal.draw_pictures(state, log)
    except Pruned:
        status = "pruned"
        raise
    finally:
        log.close(status)
    goal.show(state, log)
    if cfg.export.formats or cfg.export.card:
        settings, spec = to_settings(cfg.export, ExportSettings), model_spec(cfg)
        ranks.on_main(lambda: export_run(settings, spec, start.classifier, data.classes, folder, console))
    minutes = state.seconds / 60
    console.info(f"trained {pluralize(state.total_step, 'step')} in {minutes:.1f} minutes; all files are in {folder}")
    return state.best


def _fit(cfg: DictConfig, data: "RunData", parts: "Parts", start: "Start", goal: "Goal", log: "RunLog") -> "TrainState":
    """Trains all phases, from the step at which the run starts or resumes."""
    from vidtrain.runs.assemble import Record, assemble
    from vidtrain.sweeps.record import on_validation
    from vidtrain.training.loop import fit
    from vidtrain.training.validation import check_overfit

    ranks, console, folder = goal.ranks, goal.console, log.run_dir
    hook = on_validation(folder, ranks, console, run_folder.is_started_by_sweep())
    record = Record(log, console, folder, hook, goal.preemption)
    run = assemble(cfg, data, parts, start.model, goal, ranks, record, start.adapters)
    goal.begin(log)
    state = fit(run, start.resume)
    if parts.settings.overfit_one_batch:
        check_overfit(goal(start.model)[0].metrics, parts.loss, state.total_step)
    return state


def main() -> None:
    try:
        sys.argv[1:] = rename_arguments(sys.argv[1:], "train", warn)
        run_folder.check_names_a_run(sys.argv[1:])
        sys.argv[1:], stored = run_folder.with_stored_overrides(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    launch("train", train, check, stored)


if __name__ == "__main__":
    main()
