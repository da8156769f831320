"""The training loop, top to bottom: phases, steps, evaluation, checkpoints.

Its input is the `Run` that the app assembles, and the checkpoint of an earlier attempt if the run resumes. A step
depends on (seed, step) alone, so a run that is killed and resumed ends with the same bits as one that is not.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vidtrain.errors import DivergedError, UserError, pluralize
from vidtrain.training.phases import Phase, StepResult, Trainer, TrainState, seed_step
from vidtrain.training.profiling import NO_CLOCK, NoClock, StepClock, epoch_costs
from vidtrain.training.run import Run, TrainerSettings
from vidtrain.training.stages import finite_mean, head_value, set_train_mode
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
        resume = None  # later phases begin at their first step
        with run.preemption.deferred(), run.console.phase(phase.name, phase.total, state.step), phase.profiler:
            while not phase.ended:
                iterate(trainer, phase)
    return state


def iterate(trainer: Trainer, phase: Phase) -> None:
    """One optimizer step, then what follows it: the epoch's report, evaluation, the phase's end, a checkpoint."""
    run, state = trainer.run, trainer.state
    # False if a signal interrupted an evaluation of the last attempt: the resumed run starts with that evaluation
    stepped = not state.eval_pending
    if stepped:
        started = time.perf_counter()
        result = train_step(phase, state)  # from here on, state.step counts this step
        phase.profiler.step()
        log_step(trainer, phase, result, time.perf_counter() - started)

    # The step's only collective besides the gradients'. A signal to any rank stops all ranks after the same step
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
        run.preemption.raise_stopped()


def train_step(phase: Phase, state: TrainState, clock: StepClock | NoClock = NO_CLOCK) -> StepResult:
    """One optimizer step of the phase. The host waits for the device once (`tolist`), before the weights change.

    Raises `DivergedError` naming the files of a micro-batch whose loss is not finite.
    """
    run, task, settings = phase.run, phase.task, phase.run.settings
    device, clips_seen, data_seconds, store_seconds = run.ranks.device, 0, 0.0, 0.0
    seed_step(run.seed, state.total_step, run.ranks)  # for dropout and drop path
    rates = phase.optimizers.set_rates(phase.lr, phase.weight_decay, state.step + 1, phase.total)
    losses, terms, indices = [], [], []  # of each micro-batch
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
        terms.append(output.terms)
        indices.append(batch.indices)
        clips_seen += batch.clips.shape[0] * batch.clips.shape[1]
        clock.mark("backward")
    norms = phase.optimizers.clip(settings.clip_grad, settings.clip_grad_by)
    # A row for each micro-batch, one for the norms and one for each term; a column for each head. The only wait for the
    # device
    named = {name: torch.stack([each[name].detach() for each in terms]).mean(0) for name in terms[0]}
    rows = torch.stack([row.double() for row in (*losses, norms, *named.values())]).tolist()
    micro_losses, grad_norms = [finite_mean(values) for values in rows[: len(losses)]], rows[len(losses)]
    for loss, videos in zip(micro_losses, indices, strict=True):
        if not math.isfinite(loss):  # before the weights change, so no checkpoint holds them
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
    term_means = dict(zip(named, map(finite_mean, rows[len(losses) + 1 :]), strict=True))
    waits = data_seconds, store_seconds
    return StepResult(state.total_step, state.loss, finite_mean(grad_norms), term_means, rates, clips_seen, *waits)


def log_step(trainer: Trainer, phase: Phase, result: StepResult, seconds: float) -> None:
    run, state = trainer.run, trainer.state
    state.seconds = time.perf_counter() - trainer.started
    metrics = {
        "train/step_loss": result.loss,
        **{f"train/{name}": value for name, value in result.terms.items()},
        "train/grad_norm": result.grad_norm,
        "train/clips_per_s": result.clips * run.ranks.world_size / seconds,
        "train/data_share": result.data_seconds / seconds,
        "train/store_share": result.store_seconds / seconds,
    }
    columns, lr = position(trainer, phase), phase.optimizers.lr
    row = {"step": state.total_step, **columns, "seconds": seconds, **metrics}
    run.log.step({**row, "lr": lr, "weight_decay": result.rates["weight_decay"]})
    progress: dict[str, float | str] = {"epoch": round(columns["epoch"], 1), "loss": result.loss, "lr": lr}
    progress["clips/s"] = metrics["train/clips_per_s"]
    if result.store_seconds:
        progress["waiting for the store"] = f"{metrics['train/store_share']:.0%}"
    run.console.advance(state.step, progress)
    if state.total_step % run.settings.log_every == 0:
        run.log.log({**columns, **metrics, **result.rates}, state.total_step)


def log_epoch(trainer: Trainer, phase: Phase) -> None:
    """Logs the metrics of the epoch over all ranks, and its cost in time and memory."""
    run, state = trainer.run, trainer.state
    metrics = phase.sums.reduced(run.ranks).metrics(phase.optimizers.loss_scale)
    costs = epoch_costs(time.perf_counter() - phase.epoch_started, state.seconds, run.ranks.device)
    columns = position(trainer, phase)
    row = {f"train/{name}": value for name, value in metrics.items()}
    run.log.log({**columns, **row, **costs}, state.total_step)
    run.console.info(training_line(columns["epoch"], metrics))


def position(trainer: Trainer, phase: Phase) -> dict[str, Any]:
    """The columns epoch and phase of every row of the log."""
    return {"epoch": trainer.state.total_step / trainer.run.steps_per_epoch, "phase": phase.name}


def evaluate(trainer: Trainer, phase: Phase) -> bool:
    """Evaluates on val, and saves the weights if they are the best so far; False if a signal interrupted it."""
    run, state, monitor = trainer.run, trainer.state, trainer.run.settings.monitor
    reports = validate(phase.task.model, phase.task.evaluate, phase.heads.names, trainer.average, run.ranks)
    set_train_mode(phase.task.model, run.settings.batch_norm)
    if reports is None:
        return False
    state.eval_pending = False
    if run.ranks.is_main:
        for path, cause in next(iter(reports.values())).missing:  # the same in every report
            run.log.fault(path, cause, step=state.total_step, split="val")
    selected = phase.heads.select(reports, monitor, trainer.direction)
    phase.heads.put_into(trainer.model, phase.task.model, selected)
    value = head_value(reports[selected], monitor)
    improved = state.record(value, trainer.direction)
    columns = position(trainer, phase)
    run.log.log({**columns, **validation_row(reports, selected)}, state.total_step)
    for line in validation_lines(columns["epoch"], reports, monitor, selected, improved):
        run.console.info(line)
    if improved:
        trainer.saver.best(trainer.best_checkpoint(phase, selected, reports[selected].metrics))
    run.on_validation(value)
    return True


def end_phase(trainer: Trainer, phase: Phase) -> None:
    """Advances the state to the next phase."""
    run, state = trainer.run, trainer.state
    if state.step < phase.total:
        monitor, evaluations = run.settings.monitor, state.evals_since_best
        run.console.info(
            f"phase {phase.name} ends early: {monitor} did not improve in {pluralize(evaluations, 'evaluation')}"
        )
        if phase.sums.samples:  # the phase ends within an epoch, whose metrics are not logged yet
            log_epoch(trainer, phase)
    state.next_phase()


def save(trainer: Trainer, phase: Phase, keep: bool) -> bool:
    """Writes last.pt, and with `keep` a checkpoint that is never deleted; returns whether that succeeded."""
    run = trainer.run
    # Log rows go to disk first, because a run resumed from this checkpoint does not write them again
    unwritten = run.ranks.gather_objects(run.log.flush())
    required = trainer.state.phase == len(run.phases)  # the last checkpoint of the run
    return trainer.saver.save(trainer.checkpoint(phase), unwritten, keep, required)


def raise_non_finite_loss(loss: float, step: int, files: Sequence[str], checkpoints: Path) -> None:
    """Raises `DivergedError` for a loss that is not finite, naming the `files` of its micro-batch."""
    file_list = "\n  ".join(files)
    raise DivergedError(
        f"the loss is {loss} at step {step}, on these files:\n  {file_list}\n"
        "Lower optimizer.lr, lengthen the warmup or use trainer.precision=fp32. No checkpoint in "
        f"{checkpoints} holds this step"
    )


def check_faults(faults: int, settings: TrainerSettings, per_epoch: int) -> None:
    """Raises `UserError` once `faults`, the epoch's failed reads on all ranks, exceed the allowed share of a whole
    epoch."""
    videos = per_epoch * settings.batch_size
    if faults > settings.max_unreadable_fraction * videos:
        raise UserError(
            f"{faults} of this epoch's {videos} readings of videos failed, more than "
            f"trainer.max_unreadable_fraction={settings.max_unreadable_fraction:g} allows; faults_rank*.jsonl in the "
            "run folder names the files. Repair them, take them out of the dataset, or allow a larger fraction"
        )
