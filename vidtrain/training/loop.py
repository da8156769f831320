"""The training loop, top to bottom: phases, steps, evaluation, checkpoints.

Its input is what the app assembled (`Run`) and the checkpoint of an earlier attempt, if there is one. What a step does
depends on (seed, step) alone, so a run that was killed and resumed ends with the same bits as one that was not.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vidtrain.errors import DivergedError, UserError
from vidtrain.training.phases import Phase, Trainer, seed_step
from vidtrain.training.profiling import NO_CLOCK, NoClock, StepClock, epoch_costs
from vidtrain.training.run import Run, TrainerSettings
from vidtrain.training.stages import finite_mean, head_value, set_train_mode
from vidtrain.training.state import StepResult, TrainState
from vidtrain.training.validation import training_line, validate, validation_lines, validation_row


def fit(run: Run, resume: Mapping[str, Any] | None = None) -> TrainState:
    """Trains through every phase that is left and returns the final state; `resume` is the last checkpoint.

    Raises `UserError` when the loss stops being finite, when too many videos cannot be read, or when a phase cannot be
    trained as configured.
    """
    trainer = Trainer.start(run, resume)
    state = trainer.state
    while state.phase < len(run.phases):
        phase = trainer.begin_phase(resume)
        resume = None  # the phases after this one begin at their first step
        with run.preemption.deferred(), run.console.phase(phase.name, phase.total, state.step), phase.profiler:
            while not phase.ended:
                iterate(trainer, phase)
    return state


def iterate(trainer: Trainer, phase: Phase) -> None:
    """One optimizer step, then what follows it: the epoch's report, evaluation, the phase's end, a checkpoint."""
    run, state = trainer.run, trainer.state
    # False if a signal ended the last attempt during an evaluation: the resumed run starts with that evaluation
    stepped = not state.eval_pending
    if stepped:
        started = time.perf_counter()
        result = train_step(phase, state)  # from here on, state.step counts this step
        phase.profiler.step()
        log_step(trainer, phase, result, time.perf_counter() - started)

    # A step's only collective besides that of the gradients. A signal to any rank stops all ranks after the same step
    stop_requests, failed_reads = run.ranks.all_reduce_sum(int(run.preemption.stop_requested), int(phase.sums.faults))
    check_faults(failed_reads, run.settings, run.steps_per_epoch)
    stopping, at_end = stop_requests > 0, state.step == phase.total
    if stepped and (state.step % run.steps_per_epoch == 0 or at_end):
        log_epoch(trainer, phase)
        phase.start_epoch()
    if phase.evaluate_at(state.step) or at_end:
        state.eval_pending = True
    if state.eval_pending and not stopping:
        stopping = not evaluate(trainer, phase)

    # A phase ends with its last step, or early when validation has stopped improving
    phase.ended = (at_end or trainer.out_of_patience) and not state.eval_pending
    keep = phase.keep_at(state.step)
    saving = phase.ended or stopping or keep or phase.save_at(state.step)
    if phase.ended:
        end_phase(trainer, phase)  # sets state.step to 0, for the next phase
    saved = saving and save(trainer, phase, keep)
    if stopping:
        not_saved = "" if saved else "not "
        run.console.info(f"a signal ends the run at step {state.total_step}, which is {not_saved}saved")
        run.preemption.stop_if(True)


def train_step(phase: Phase, state: TrainState, clock: StepClock | NoClock = NO_CLOCK) -> StepResult:
    """One optimizer step of the phase. The host waits for the device once (`tolist`), before the weights move.

    Raises `DivergedError` naming the files of a micro-batch whose loss is not finite.
    """
    run, task, settings = phase.run, phase.task, phase.run.settings
    device, clips_seen, data_seconds, store_seconds = run.ranks.device, 0, 0.0, 0.0
    seed_step(run.seed, state.total_step, run.ranks)  # dropout and drop-path draw from it
    rates = phase.optimizers.set_rates(phase.lr, phase.weight_decay, state.step + 1, phase.total)
    losses, indices = [], []  # of each micro-batch
    for micro in range(settings.accumulation):
        waiting = time.perf_counter()
        batch = phase.next_batch(state.total_step + 1)
        waited = time.perf_counter() - waiting
        data_seconds += waited
        store_seconds += waited * batch.store.share
        clock.mark("load")
        clips = batch.clips.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        clock.mark("transfer")
        key = (run.seed, state.total_step, micro, run.ranks.rank)
        clips, targets = task.mix(task.transform(clips, batch.seeds), labels, key)
        clock.mark("augment")
        with phase.gradient_sync(last=micro == settings.accumulation - 1):
            with phase.autocast:
                output = phase.objective(phase.forward(clips), targets)
            clock.mark("forward")
            phase.optimizers.backward(output.losses / settings.accumulation)
        phase.sums.add(output.losses.detach(), output.logits.detach(), labels)
        losses.append(output.losses.detach())
        indices.append(batch.indices)
        clips_seen += batch.clips.shape[0] * batch.clips.shape[1]
        clock.mark("backward")
    norms = phase.optimizers.clip(settings.clip_grad, settings.clip_grad_by)
    # One row for each micro-batch and one for the norms, one column for each head. The only wait for the device
    *by_micro, grad_norms = torch.stack([row.double() for row in (*losses, norms)]).tolist()
    micro_losses = [finite_mean(values) for values in by_micro]
    for loss, videos in zip(micro_losses, indices, strict=True):
        if not math.isfinite(loss):  # the weights have not moved yet, so no checkpoint holds any of this step
            files = [run.train_paths[index] for index in videos.tolist()]
            raise_non_finite_loss(loss, state.total_step + 1, files, run.checkpoints)
    if run.ranks.is_main:
        phase.sums.skipped += phase.optimizers.skips(grad_norms)
    phase.optimizers.step()
    state.step += 1
    state.total_step += 1
    if phase.average is not None:
        phase.average.update(state.total_step)
    phase.objective.after_step()
    clock.mark("optimizer")
    state.loss = sum(micro_losses) / settings.accumulation
    waits = data_seconds, store_seconds
    return StepResult(state.total_step, state.loss, finite_mean(grad_norms), rates, clips_seen, *waits)


def log_step(trainer: Trainer, phase: Phase, result: StepResult, seconds: float) -> None:
    run, state = trainer.run, trainer.state
    state.seconds = time.perf_counter() - trainer.started
    metrics = {
        "train/step_loss": result.loss,
        "train/grad_norm": result.grad_norm,
        "train/clips_per_s": result.clips * run.ranks.world_size / seconds,
        "train/data_share": result.data_seconds / seconds,
        "train/store_share": result.store_seconds / seconds,
    }
    about, lr = position(trainer, phase), phase.optimizers.lr
    row = {"step": state.total_step, **about, "seconds": seconds, **metrics}
    run.log.step({**row, "lr": lr, "weight_decay": result.rates["weight_decay"]})
    shown: dict[str, float | str] = {"epoch": round(about["epoch"], 1), "loss": result.loss, "lr": lr}
    shown["clips/s"] = metrics["train/clips_per_s"]
    if result.store_seconds:
        shown["waiting for the store"] = f"{metrics['train/store_share']:.0%}"
    run.console.advance(state.step, shown)
    if state.total_step % run.settings.log_every == 0:
        run.log.log({**about, **metrics, **result.rates}, state.total_step)


def log_epoch(trainer: Trainer, phase: Phase) -> None:
    """Logs the metrics of the epoch over all ranks, and its cost in time and memory."""
    run, state = trainer.run, trainer.state
    metrics = phase.sums.reduced(run.ranks).metrics(phase.optimizers.loss_scale)
    costs = epoch_costs(time.perf_counter() - phase.epoch_started, state.seconds, run.ranks.device)
    about = position(trainer, phase)
    row = {f"train/{name}": value for name, value in metrics.items()}
    run.log.log({**about, **row, **costs}, state.total_step)
    run.console.info(training_line(about["epoch"], metrics))


def position(trainer: Trainer, phase: Phase) -> dict[str, Any]:
    """The columns epoch and phase, which every row of the log has."""
    return {"epoch": trainer.state.total_step / trainer.run.steps_per_epoch, "phase": phase.name}


def evaluate(trainer: Trainer, phase: Phase) -> bool:
    """Evaluates on val, and saves the weights if they are the best so far; False if a signal cut it short."""
    run, state, monitor = trainer.run, trainer.state, trainer.run.settings.monitor
    reports = validate(phase.task.model, phase.task.evaluate, phase.heads.names, trainer.average, run.ranks)
    set_train_mode(phase.task.model, run.settings.batch_norm)
    if reports is None:
        return False
    state.eval_pending = False
    if run.ranks.is_main:
        for path, cause in next(iter(reports.values())).missing:  # the same for all of them
            run.log.fault(path, cause, step=state.total_step, split="val")
    selected = phase.heads.select(reports, monitor, trainer.direction)
    phase.heads.put_into(trainer.model, phase.task.model, selected)
    value = head_value(reports[selected], monitor)
    improved = state.record(value, trainer.direction)
    about = position(trainer, phase)
    run.log.log({**about, **validation_row(reports, selected)}, state.total_step)
    for line in validation_lines(about["epoch"], reports, monitor, selected, improved):
        run.console.info(line)
    if improved:
        trainer.saver.best(trainer.best_checkpoint(phase, selected, reports[selected].metrics))
    run.on_validation(value)
    return True


def end_phase(trainer: Trainer, phase: Phase) -> None:
    """Moves the state on to the next phase."""
    run, state = trainer.run, trainer.state
    if state.step < phase.total:
        run.console.info(
            f"phase {phase.name} ends early: no better {run.settings.monitor} in {state.evals_since_best} evaluations"
        )
        if phase.sums.samples:  # the phase ends within an epoch, whose report is not logged yet
            log_epoch(trainer, phase)
    state.next_phase()


def save(trainer: Trainer, phase: Phase, keep: bool) -> bool:
    """Writes last.pt, and with `keep` a checkpoint that is never deleted; returns whether it could be written."""
    run = trainer.run
    # Log rows go to disk first: a run resumed from this checkpoint never writes them again
    unwritten = run.ranks.gather_objects(run.log.flush())
    must = trainer.state.phase == len(run.phases)
    return trainer.saver.save(trainer.checkpoint(phase), unwritten, keep, must=must)


def raise_non_finite_loss(loss: float, step: int, files: Sequence[str], checkpoints: Path) -> None:
    """Raises `DivergedError` for a loss that is not finite, naming the `files` of its micro-batch."""
    file_list = "\n  ".join(files)
    raise DivergedError(
        f"the loss is {loss} at step {step}, on these files:\n  {file_list}\n"
        "Lower optimizer.lr, lengthen the warmup or use trainer.precision=fp32. Nothing after this step's "
        f"beginning was saved in {checkpoints}"
    )


def check_faults(faults: int, settings: TrainerSettings, per_epoch: int) -> None:
    """Raises `UserError` once `faults`, the epoch's failed reads on all ranks, exceed the allowed share of a whole
    epoch."""
    videos = per_epoch * settings.batch_size
    if faults > settings.max_unreadable_fraction * videos:
        raise UserError(
            f"{faults} reads failed of this epoch's {videos} videos, more than "
            f"trainer.max_unreadable_fraction={settings.max_unreadable_fraction:.0%}; "
            "faults_rank*.jsonl in the run folder names them"
        )
