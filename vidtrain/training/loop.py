"""The training loop, top to bottom: phases, steps, evaluation, checkpoints.

It is a function of what the app assembled (`Run`) and of where an earlier attempt stood. What a step does
depends on (seed, step) alone, so a run that was killed and resumed ends with the same bits as one that was not.
"""

import itertools
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vidtrain.errors import UserError
from vidtrain.evaluation.fusion import fuse
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.training.batch_norm import freeze_batch_norm, prepare_batch_norm
from vidtrain.training.ema import WeightAverage
from vidtrain.training.learning import (
    best_head,
    finite_mean,
    grid_line,
    groups_of,
    head_names,
    head_value,
    load_updates,
    make_updates,
    packed,
    peak_lr,
    select_head,
    set_all_rates,
)
from vidtrain.training.memory import epoch_costs
from vidtrain.training.optim import clip_gradients
from vidtrain.training.precision import autocast
from vidtrain.training.preflight import check_gradients
from vidtrain.training.profiling import step_profiler
from vidtrain.training.refusals import check_faults, check_phases, refuse_loss
from vidtrain.training.run import Run
from vidtrain.training.saving import Saver
from vidtrain.training.schedules import every, steps, too_long
from vidtrain.training.seeding import seed_step
from vidtrain.training.stages import apply_phase, parameter_table, set_train_mode
from vidtrain.training.state import EpochSums, TrainState
from vidtrain.training.validation import (
    VALIDATED,
    report_epoch,
    selecting_weights,
    settings_lines,
    validate,
    validation_lines,
    validation_row,
)


def fit(run: Run, resume: Mapping[str, Any] | None = None) -> TrainState:
    """Trains through every phase that is left and returns the final state; `resume` is the last checkpoint.

    Raises `UserError` when the loss stops being finite, when too many videos cannot be read, or when the
    configuration cannot train what it asks to.
    """
    settings, ranks, log, console = run.settings, run.ranks, run.log, run.console
    device, per_epoch = ranks.device, run.steps_per_epoch
    direction = DIRECTIONS[settings.monitor]
    context = autocast(ranks, settings.precision)
    model = prepare_batch_norm(run.model, settings.batch_norm, ranks)
    new_sums = partial(EpochSums.zeros, model.num_classes, run.multi_label, device)

    def judge(clip_logits: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        # the fused logits and the loss of each head; of a phase without a grid, there is one
        every = clip_logits.split(model.num_classes, dim=-1)
        logits = [fuse(each, model.fusion, run.loss.independent) for each in every]
        return [(each, run.loss(each, targets, run.class_weights)) for each in logits]

    def total_loss(clip_logits: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([loss for _, loss in judge(clip_logits, targets)]).mean()

    state = TrainState(**resume["state"]) if resume else TrainState()
    average = None if settings.ema is None else WeightAverage(model, settings.ema, settings.ema_warmup)
    if resume and average is not None:
        average.load(resume["ema"])
    phases = list(run.phases.items())
    saver = Saver(run.checkpoints, run.card, ranks, log, console)
    attempt_started = time.perf_counter() - state.seconds
    check_phases(model, run.phases, settings.epochs, per_epoch)
    for line in settings_lines(model, settings):
        console.info(line)

    while state.phase < len(phases):
        # What this phase trains. Everything that holds parameters is made anew: fresh optimizer state, and
        # DDP reads requires_grad only once.
        name, phase = phases[state.phase]
        total = steps(phase.duration, settings.epochs * per_epoch, per_epoch)
        apply_phase(model, phase)
        freeze_batch_norm(model, settings.batch_norm)
        learning, heads = run.learning(model, phase), head_names(phase.heads)
        learner = learning.learner
        selecting = selecting_weights(settings.monitor_weights, settings.ema)
        updates = make_updates(run.optimizer, learner, phase, device.type, settings.precision)
        lr = run.lr.in_steps(total, per_epoch)
        weight_decay = run.weight_decay.in_steps(total, per_epoch)
        if (words := too_long(lr, total)) is not None:
            console.warn(f"phase {name}: schedule.lr: {words}")
        sums = new_sums()
        if resume and resume["optimizer"] is not None:
            load_updates(updates, resume["optimizer"], resume["scaler"])
            if phase.heads is not None:
                learner.head.load_state_dict(resume["heads"])
            sums.restore(resume["sums"], ranks.rank, ranks.world_size)
        resume = None
        wrapped = learner
        if ranks.world_size > 1:
            wrapped = DistributedDataParallel(learner, [device.index] if device.type == "cuda" else None)
        if settings.compile:
            wrapped = torch.compile(wrapped)

        # Preflight on the first batch, which the first step then trains on
        batches = iter(learning.train_batches(state.total_step, state.total_step + total - state.step))
        first = next(batches, None)  # none is left of a phase that a signal ended in its last evaluation
        title = f"phase {name} ({state.phase + 1} of {len(phases)}): {total} steps"
        columns = ("part", "parameters", "trained", "peak lr")
        console.table(title, columns, parameter_table(learner, groups_of(updates), peak_lr(updates)))
        if phase.heads is not None:
            console.info(grid_line(learner, heads))
        if first is not None:
            if first.refusal:
                for path, cause in first.faults:
                    log.fault(path, cause, step=state.total_step + 1, split="train")
                raise UserError(first.refusal)
            batches = itertools.chain([first], batches)
            set_train_mode(learner, settings.batch_norm)
            seed_step(run.seed, state.total_step, ranks)
            clips = learning.transform(first.clips.to(device), first.seeds)
            preflight_loss = check_gradients(learner, clips, first.labels.to(device), total_loss, context)
            count = sum(len(each.parameters) for each in updates)
            console.info(f"preflight passed: loss {preflight_loss:.3f}, a finite gradient in {count} tensors")

        evaluate_due = every(settings.eval_every, total, per_epoch)
        save_due = every(settings.save_every, total, per_epoch)
        keep_due = every(settings.keep_every, total, per_epoch) if settings.keep_every else lambda _: False
        epoch_started = time.perf_counter()
        ended = False
        profiler = step_profiler(run.checkpoints.parent / "profile", settings.profile and ranks.is_main)
        with run.halt.deferred(), console.phase(name, total, state.step), profiler:
            while not ended:
                made = not state.due  # else a signal ended the run in the evaluation of this step
                if made:
                    step_started = time.perf_counter()
                    # Dropout and drop-path are drawn from the step's own seed: no generator state to keep
                    seed_step(run.seed, state.total_step, ranks)
                    rates = set_all_rates(updates, lr, weight_decay, state.step + 1, total)
                    loss_sum, clips_seen, data_seconds = 0.0, 0, 0.0
                    for micro in range(settings.accumulation):
                        waiting = time.perf_counter()
                        batch = next(batches)
                        data_seconds += time.perf_counter() - waiting
                        for path, cause in batch.faults:
                            log.fault(path, cause, step=state.total_step + 1, split="train")
                        if batch.refusal:
                            raise UserError(batch.refusal)
                        sums.faults += len(batch.faults)
                        clips = learning.transform(batch.clips.to(device, non_blocking=True), batch.seeds)
                        labels = batch.labels.to(device, non_blocking=True)
                        clips, targets = learning.mix(
                            clips, labels, (run.seed, state.total_step, micro, ranks.rank)
                        )
                        # gradients cross ranks once a step, with the last micro-batch
                        sync = ranks.world_size == 1 or micro == settings.accumulation - 1
                        with nullcontext() if sync else wrapped.no_sync():
                            with context:
                                judged = judge(wrapped(clips), targets)
                            scaled = [
                                each.scaler.scale(loss / settings.accumulation)
                                for each, (_, loss) in zip(updates, judged, strict=True)
                            ]
                            sum(scaled).backward()  # no head's gradient depends on another head's loss
                        losses = torch.stack([loss.detach() for _, loss in judged]).tolist()
                        loss_value = finite_mean(losses)
                        if not np.isfinite(loss_value):
                            files = [run.train_paths[index] for index in batch.indices.tolist()]
                            refuse_loss(loss_value, state.total_step + 1, files, run.checkpoints)
                        for (logits, loss), value in zip(judged, losses, strict=True):
                            if np.isfinite(value):
                                sums.add(loss.detach(), logits.detach(), labels)
                        loss_sum += loss_value
                        clips_seen += batch.clips.shape[0] * batch.clips.shape[1]
                    norms = []
                    for parameters, optimizer, scaler in updates:
                        scaler.unscale_(optimizer)
                        norms.append(clip_gradients(parameters, settings.clip_grad, settings.clip_grad_by))
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad(set_to_none=True)
                    grad_norm = finite_mean(torch.stack(norms).tolist())
                    state.step += 1
                    state.total_step += 1
                    if average is not None:
                        average.update(state.total_step)
                    state.loss = loss_sum / settings.accumulation
                    profiler.step()

                    seconds = time.perf_counter() - step_started
                    state.seconds = time.perf_counter() - attempt_started
                    epoch = state.total_step / per_epoch
                    now = {
                        "train/step_loss": state.loss,
                        "train/grad_norm": grad_norm,
                        "train/clips_per_s": clips_seen * ranks.world_size / seconds,
                        "train/data_share": data_seconds / seconds,
                    }
                    lr_now = max(group["lr"] for group in groups_of(updates))
                    row = {"step": state.total_step, "epoch": epoch, "phase": name, "seconds": seconds, **now}
                    log.step({**row, "lr": lr_now, "weight_decay": rates["weight_decay"]})
                    shown = {"loss": state.loss, "lr": lr_now, "clips/s": now["train/clips_per_s"]}
                    console.advance(state.step, {"epoch": round(epoch, 1), **shown})
                    if state.total_step % settings.log_every == 0:
                        log.log({"epoch": epoch, "phase": name, **now, **rates}, state.total_step)
                # A signal to any rank stops all of them here, at the same step, or within the evaluation
                asked, faults = ranks.totals(int(run.halt.asked), int(sums.faults))
                check_faults(faults, settings, per_epoch)
                stopping, found, epoch = asked > 0, None, state.total_step / per_epoch
                about = {"epoch": epoch, "phase": name}
                if made and (state.step % per_epoch == 0 or state.step == total):
                    costs = epoch_costs(time.perf_counter() - epoch_started, state.seconds, device)
                    report_epoch(sums, ranks, log, console, about, costs, state.total_step)
                    sums, epoch_started = new_sums(), time.perf_counter()
                state.due = state.due or evaluate_due(state.step) or state.step == total
                if state.due and not stopping:
                    found = validate(learner, learning.evaluate, heads, average, ranks)
                    set_train_mode(learner, settings.batch_norm)
                    stopping = found is None
                if found is not None:
                    state.due = False
                    for path, cause in found[heads[0]].table.missing if ranks.is_main else ():
                        log.fault(path, cause, step=state.total_step, split="val")
                    if phase.heads is not None:
                        selecting = best_head(found, settings.monitor, direction)
                        select_head(model, learner, heads, selecting)
                    value = head_value(found[selecting], settings.monitor)
                    improved = state.improves(value, direction)
                    state.stale = 0 if improved else state.stale + 1
                    if improved:
                        state.best, state.best_step = value, state.total_step
                    log.log({**about, **validation_row(found, selecting)}, state.total_step)
                    for line in validation_lines(epoch, found, settings.monitor, selecting, improved):
                        console.info(line)
                    if improved:
                        best = {
                            "model": average.tensors if selecting == "ema" else model.state_dict(),
                            "weights": selecting if selecting in VALIDATED else "raw",
                            "head": None if phase.heads is None else selecting,
                            "state": asdict(state),
                            "metrics": found[selecting].metrics,
                        }
                        saver.best(best)
                    run.on_validation(value)

                # A phase ends with its last step, or early when validation has stopped improving
                stale = settings.patience is not None and state.stale >= settings.patience
                ended = (stale or state.step == total) and not state.due
                keep, save = keep_due(state.step), save_due(state.step)
                if ended:
                    if state.step < total:
                        console.info(
                            f"phase {name} ends early: no better {settings.monitor} in {state.stale} evaluations"
                        )
                        if sums.samples:  # of the epoch that it ends in
                            costs = epoch_costs(time.perf_counter() - epoch_started, state.seconds, device)
                            report_epoch(sums, ranks, log, console, about, costs, state.total_step)
                    state.phase, state.step, state.stale = state.phase + 1, 0, 0
                if save or keep or ended or stopping:
                    unwritten = ranks.gather(log.flush())  # a resumed run never writes these rows again
                    payload = {
                        "model": model.state_dict(),
                        "weights": "raw",
                        "ema": None if average is None else average.tensors,
                        "heads": None if phase.heads is None else learner.head.state_dict(),
                        "optimizer": None if ended else packed(each.optimizer for each in updates),
                        "scaler": packed(each.scaler for each in updates),
                        "sums": ranks.gather({key: value.cpu() for key, value in sums.tensors().items()}),
                        "state": asdict(state),
                    }
                    saved = saver.save(payload, unwritten, keep, must=state.phase == len(phases))
                if stopping:
                    word = "" if saved else "not "
                    console.info(f"a signal ends the run at step {state.total_step}, which is {word}saved")
                    run.halt.stop_if(True)
    return state
