"""The training app: compose, check, build, fit, evaluate, and return the metric that it selected on.

python -m vidtrain.train dataset=motion model=vit3d_micro optimizer.lr=3e-4
"""

import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from vidtrain import attempts
from vidtrain.app import fail, launch
from vidtrain.errors import DivergedError, Pruned, UserError
from vidtrain.run_folder import check_names_a_run, with_stored_overrides
from vidtrain.secrecy import masked_values
from vidtrain.training.halting import Halt, Stopped

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from pathlib import Path

    from vidtrain.training.distributed import Ranks


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    from vidtrain.check import check_run

    return check_run(cfg)


def train(cfg: DictConfig) -> float | None:
    """One run, from the composed configuration to its best value of `trainer.monitor` on val."""
    with Halt() as halt:  # before torch is imported, so that a signal finds us listening
        try:
            return _attempt(cfg, halt)
        except Stopped as stop:  # before there was a folder to note it in
            sys.exit(stop.status)


def _attempt(cfg: DictConfig, halt: Halt) -> float | None:
    from vidtrain import run_folder
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import join_ranks

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
    cfg: DictConfig, ranks: "Ranks", console, folder: "Path", halt: Halt, attempt: attempts.Attempt
) -> float:
    import torch

    from vidtrain import __version__, build, build_data, run_data, run_folder, run_pictures, sweep_trial
    from vidtrain.data.balance import class_shares, describe_shares
    from vidtrain.data.class_names import spelled_classes
    from vidtrain.evaluate import evaluate_split
    from vidtrain.evaluate_report import results_table
    from vidtrain.evaluation.metrics import DIRECTIONS
    from vidtrain.evaluation.report import Report, report
    from vidtrain.evaluation.views import split_heads, view_table
    from vidtrain.export_model import export_run
    from vidtrain.frozen import CachedHeads, many_heads, show_head_table, write_head_table
    from vidtrain.starting_point import load_starting_point
    from vidtrain.tracking.atomic import write_json_atomic
    from vidtrain.tracking.mirror import NullMirror
    from vidtrain.tracking.mirrors import Mirrors
    from vidtrain.tracking.provenance import write_provenance
    from vidtrain.tracking.run_log import RunLog, each_metric
    from vidtrain.training import checkpoint
    from vidtrain.training.head_table import head_table
    from vidtrain.training.loop import fit
    from vidtrain.training.losses import describe_loss
    from vidtrain.training.precision import autocast
    from vidtrain.training.refusals import check_learned
    from vidtrain.training.resuming import find_resume, load_best
    from vidtrain.training.run import PhaseTask, Run
    from vidtrain.training.settings import PhaseSettings
    from vidtrain.training.validation import HEADS, VALIDATED, check_monitor

    settings = OmegaConf.to_object(cfg.trainer)
    build.set_cpu_threads(settings.cpu_threads, ranks)
    if settings.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(settings.deterministic)  # else as a trial before had it
    run_id = ranks.on_main(lambda: run_folder.record(folder, cfg))
    if ranks.is_main:
        write_provenance(folder)
    console.info(f"run folder {folder}")

    # Data
    reading = build_data.reading(cfg, ranks, folder)
    splits = build_data.manifests(cfg, ranks, console)
    sweep_trial.check_objective(folder, splits)
    digests = ranks.on_main(
        lambda: run_data.begin(folder, splits, reading.index, cfg.data.allow_changed, console)
    )
    splits["train"] = build_data.filtered(cfg, splits["train"], reading.index, ranks, console)
    if settings.one_batch:
        splits = build_data.one_batch(splits, settings.batch_size, cfg.seed)
    classes = splits["train"].classes
    batches, per_epoch = build_data.train_batches(cfg, splits["train"], reading, ranks)
    steps_per_epoch = ranks.on_main(lambda: run_data.epoch_steps(folder, per_epoch, console))
    val = build_data.eval_data(cfg, "val", splits["val"], reading, ranks)
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    console.info(f"dataset {cfg.dataset.name}: {len(classes)} classes; videos: {counts}")
    if ranks.is_main:
        videos = {name: len(split) for name, split in splits.items()}
        data = {"classes": list(classes), "videos": videos, "digests": digests}
        write_json_atomic(folder / "dataset.json", {**data, "steps_per_epoch": steps_per_epoch})
    multi_label = splits["train"].multi_label
    check_monitor(settings.monitor, len(classes), multi_label)
    shares = class_shares(splits["train"], cfg.data.balance)
    loss = build.part(cfg.loss)
    class_weights = loss.weights(torch.from_numpy(shares).to(ranks.device))
    console.info(f"{describe_loss(loss, class_weights)}; {describe_shares(shares, cfg.data.balance)}")

    # Model, and where it starts: own last checkpoint, else init_from, else pretrained, else scratch
    model = build.model(cfg, len(classes), ranks)
    protocol = build.protocol_text(cfg, model.fusion)
    found, resume = find_resume(folder / "checkpoints", ranks, console), None
    if found is not None:
        newest, resume = found
        checkpoint.restore(model, resume["model"], str(newest))
        if spelled_classes(resume["classes"]) != classes:
            raise UserError(
                f"{newest} was trained on other classes, or in another order, than the dataset has now"
            )
        start = f"resumed from {newest} at step {resume['state']['total_step']}"
    else:
        start = load_starting_point(cfg, model, ranks, console, folder)
    first = resume["state"]["total_step"] if resume else 0
    attempt.begin(first)
    count = sum(parameter.numel() for parameter in model.parameters())
    encoder, head = type(model.encoder).__name__, type(model.head).__name__
    console.info(f"model {encoder} + {head}, {count / 1e6:.2f} M parameters; {start}")
    console.info(
        f"training on {ranks.device.type} x {ranks.world_size} in {settings.precision}: batches of "
        f"{settings.batch_size}, {steps_per_epoch} steps an epoch; evaluated with {protocol}"
    )

    # The record of the run; the mirror repeats it elsewhere
    mirror = Mirrors(build.part(cfg.logger)) if ranks.is_main else NullMirror()
    log = RunLog(folder, mirror, console, ranks.is_main, ranks.rank)
    log.rewind(first, ranks.world_size)
    phases = OmegaConf.to_object(cfg.stage)
    transform = build.device_transform(cfg, ranks.device)
    context = autocast(ranks, settings.precision)
    mix = build.mixing(cfg, len(classes))

    def judge(learner: torch.nn.Module, seen: Iterable, transform: torch.nn.Module) -> list[Report]:
        seen = halt.until_asked(seen)
        table = view_table(learner, seen, transform, len(val.manifest), ranks.device, context, val.crops)
        halt.stop_if(ranks.any(halt.asked))  # the table may not be whole
        tables = split_heads(table, len(classes))
        return [report(each, model.fusion, protocol, loss.independent) for each in tables]

    def evaluate(learner: torch.nn.Module) -> list[Report]:
        return judge(learner, val.batches(console), transform)

    config = OmegaConf.to_container(cfg, resolve=True)  # nothing but digests is made of it
    cached = CachedHeads(cfg, config, splits, reading, ranks, console, transform, context, judge)

    def frozen(phase: PhaseSettings) -> PhaseTask:
        if phase.cache_features:
            return cached(model, phase)
        return many_heads(model, phase, transform, mix, batches, evaluate)

    status = "failed"
    try:
        ranks.on_main(lambda: mirror.start(run_folder.mirrored(folder, run_id, cfg, first)))
        state = fit(
            Run(
                model=model,
                transform=transform,
                mix=mix,
                train_batches=batches,
                train_paths=splits["train"].paths,
                steps_per_epoch=steps_per_epoch,
                evaluate=lambda: evaluate(model)[0],
                loss=loss,
                class_weights=class_weights,
                multi_label=multi_label,
                optimizer=build.part(cfg.optimizer),
                lr=build.part(cfg.schedule.lr),
                weight_decay=build.part(cfg.schedule.weight_decay),
                phases=phases,
                settings=settings,
                ranks=ranks,
                seed=cfg.seed,
                log=log,
                console=console,
                checkpoints=folder / "checkpoints",
                card={
                    "classes": list(classes),
                    # with its references, so that one value can be changed
                    "config": masked_values(OmegaConf.to_container(cfg)),
                    "protocol": protocol,
                    "versions": {"vidtrain": __version__, "torch": str(torch.__version__)},
                },
                frozen=frozen,
                halt=halt,
                on_validation=sweep_trial.on_validation(
                    folder, ranks, console, run_folder.is_started_by_sweep()
                ),
            ),
            resume,
        )

        if settings.one_batch:
            check_learned(evaluate(model)[0].metrics, loss, state.total_step)

        if state.best is None:
            raise DivergedError(
                f"no evaluation gave a finite {settings.monitor}: no best checkpoint to report"
            )

        # The number to report: the best checkpoint, on the split that selected nothing
        best_file = folder / "checkpoints" / "best.pt"
        ranks.barrier()
        best = load_best(best_file, state)
        # those of before there was an average of them do not say
        best_weights = best["weights"] if "weights" in best else "raw"
        checkpoint.restore(model, best["model"], str(best_file))
        split = "test" if "test" in splits else "val"
        selected = "" if split == "test" else ", which also selected it: there is no test split"
        data = build_data.eval_data(cfg, split, splits[split], reading, ranks)
        found = evaluate_split(cfg, model, data, transform, ranks, console, folder / "eval" / split)
        heads = []
        if ranks.is_main:
            direction = DIRECTIONS[settings.monitor]
            judged = [row for row in each_metric(folder) if any(key.startswith(HEADS) for key in row)]
            heads = head_table(judged, phases, settings.monitor, direction)
            if heads:
                write_head_table(heads, folder / "heads.csv")
        # one step on, so that a run killed before its summary does not keep these rows twice
        prefix = "test" if split == "test" else "final"
        log.log({f"{prefix}/{name}": value for name, value in found.metrics.items()}, state.total_step + 1)
        log.summary(
            {
                "status": "finished",
                "monitor": settings.monitor,
                "best": state.best,
                "best_step": state.best_step,
                "best_weights": best_weights,  # raw, or ema: their average
                **({"best_head": best["head"]} if heads else {}),
                "steps": state.total_step,
                "minutes": round(state.seconds / 60, 2),
                **({"data_changed": True} if run_data.changed_in_mid_run(folder) else {}),
                "split": split,
                "split_also_selected": split == "val",
                "coverage": found.coverage,
                "protocol": protocol,
                **found.metrics,
            }
        )
        status = "finished"
        if ranks.is_main:  # last, as a run that ends here is finished all the same
            log.checkpoint("best", best_file)
            run_pictures.draw(cfg, log, found, split, splits[split], reading, state.total_step, console)
    except Pruned:
        status = "pruned"
        raise
    finally:
        log.close(status)

    if heads:
        show_head_table(console, heads, settings.monitor)
    results_table(
        console,
        f"best checkpoint ({VALIDATED[best_weights]} {settings.monitor} {state.best:.4f}) on {split}{selected}",
        found,
    )
    if cfg.export.formats or cfg.export.card:
        ranks.on_main(lambda: export_run(cfg, model, classes, folder, console))
    console.info(
        f"trained {state.total_step} steps in {state.seconds / 60:.1f} minutes; everything lies in {folder}"
    )
    return state.best


def main() -> None:
    try:
        check_names_a_run(sys.argv[1:])
        sys.argv[1:], stored = with_stored_overrides(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    launch("train", train, check, stored)


if __name__ == "__main__":
    main()
