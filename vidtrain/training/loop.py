"""The training loop, top to bottom: phases, steps, evaluation, checkpoints.

It is a function of what the app assembled (`Run`) and of where an earlier attempt stood. What a step does
depends on (seed, step) alone, so a run that was killed and resumed ends with the same bits as one that was not.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidtrain.errors import UserError
from vidtrain.evaluation.fusion import fuse
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.evaluation.report import Report
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks
from vidtrain.training.optim import OptimizerFactory, parameter_groups, set_rates, trainable
from vidtrain.training.preflight import check_gradients
from vidtrain.training.profiling import step_profiler
from vidtrain.training.schedules import Schedule, steps
from vidtrain.training.settings import PhaseSettings, TrainerSettings
from vidtrain.training.stages import apply_phase, parameter_table, set_train_mode
from vidtrain.training.state import EpochSums, TrainState

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Run:
    """What the loop works with, assembled by the app; every part knows nothing of the app."""

    model: nn.Module  # a VideoClassifier, on its device
    transform: nn.Module  # uint8 clips and seeds -> float clips, on the device
    mix: Callable[..., tuple[Tensor, Tensor]]  # clips, labels and a key -> clips and targets of a mixed batch
    train_batches: Callable[[int, int], Iterable]  # micro-batches of the steps from, up to (over all phases)
    train_paths: Sequence[str]  # by index, to name the files of a bad batch
    steps_per_epoch: int
    evaluate: Callable[[int], Report]  # the val split after so many steps, by all ranks
    optimizer: OptimizerFactory
    lr: Schedule
    weight_decay: Schedule
    phases: Mapping[str, PhaseSettings]
    settings: TrainerSettings
    ranks: Ranks
    seed: int
    log: Any  # a RunLog
    console: Any  # a Console
    checkpoints: Path  # the folder of last.pt and best.pt
    card: Mapping[str, Any]  # what a checkpoint needs to be usable: classes, resolved config, versions


def autocast(ranks: Ranks, precision: str) -> torch.autocast:
    """The context in which forward passes run; bf16 means bfloat16."""
    dtype = PRECISIONS[precision]
    return torch.autocast(ranks.device.type, dtype, enabled=dtype != torch.float32)


def fit(run: Run, resume: Mapping[str, Any] | None = None) -> TrainState:
    """Trains through every phase that is left and returns the final state; `resume` is the last checkpoint.

    Raises `UserError` when the loss stops being finite, when too many videos cannot be read, or when the
    configuration cannot train what it asks to.
    """
    settings, model, ranks, log, console = run.settings, run.model, run.ranks, run.log, run.console
    device, per_epoch = ranks.device, run.steps_per_epoch
    direction = DIRECTIONS[settings.monitor]
    context = autocast(ranks, settings.precision)
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    num_classes = model.num_classes

    state = TrainState(**resume["state"]) if resume else TrainState()
    phases = list(run.phases.items())
    attempt_started = time.perf_counter() - state.seconds
    _check_phases(run, per_epoch)

    while state.phase < len(phases):
        # What this phase trains. Everything that holds parameters is made anew: fresh optimizer state, and
        # DDP reads requires_grad only once.
        name, phase = phases[state.phase]
        total = steps(phase.duration, settings.epochs * per_epoch, per_epoch)
        apply_phase(model, phase)
        groups = parameter_groups(model, phase)
        optimizer = run.optimizer(groups)
        scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        lr = run.lr.in_steps(total, per_epoch)
        weight_decay = run.weight_decay.in_steps(total, per_epoch)
        sums = EpochSums.zeros(num_classes, device)
        if resume and resume["optimizer"] is not None:
            optimizer.load_state_dict(resume["optimizer"])
            scaler.load_state_dict(resume["scaler"])
            sums.restore(resume["sums"], ranks.rank, ranks.world_size)
        resume = None
        parameters = trainable(model)
        wrapped = model
        if ranks.world_size > 1:
            wrapped = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
        if settings.compile:
            wrapped = torch.compile(wrapped)

        # Preflight on the first batch, which the first step then trains on
        batches = iter(run.train_batches(state.total_step, state.total_step + total - state.step))
        first = next(batches)
        if first.refusal:
            for path, cause in first.faults:
                log.fault(path, cause, step=state.total_step + 1, split="train")
            raise UserError(first.refusal)
        batches = itertools.chain([first], batches)
        set_train_mode(model)
        _seed_step(run.seed, state.total_step, ranks)
        clips = run.transform(first.clips.to(device), first.seeds)
        preflight_loss = check_gradients(model, clips, first.labels.to(device), model.fusion, context)
        title = f"phase {name} ({state.phase + 1} of {len(phases)}): {total} steps"
        columns = ("part", "parameters", "trained", "peak lr")
        console.table(title, columns, parameter_table(model, groups, optimizer.defaults["lr"]))
        console.info(
            f"preflight passed: loss {preflight_loss:.3f}, a finite gradient in {len(parameters)} tensors"
        )

        evaluate_due = _every(settings.eval_every, total, per_epoch)
        save_due = _every(settings.save_every, total, per_epoch)
        keep_due = _every(settings.keep_every, total, per_epoch) if settings.keep_every else lambda _: False
        epoch_started = time.perf_counter()
        ended = False
        profiler = step_profiler(run.checkpoints.parent / "profile", settings.profile and ranks.is_main)
        with console.phase(name, total, state.step), profiler:
            while not ended:
                step_started = time.perf_counter()
                # Dropout and drop-path are drawn from the step's own seed: no generator state to keep
                _seed_step(run.seed, state.total_step, ranks)
                rates = set_rates(optimizer, lr, weight_decay, state.step + 1, total)
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
                    clips = run.transform(batch.clips.to(device, non_blocking=True), batch.seeds)
                    labels = batch.labels.to(device, non_blocking=True)
                    clips, targets = run.mix(clips, labels, (run.seed, state.total_step, micro, ranks.rank))
                    # gradients cross ranks once a step, with the last micro-batch
                    sync = ranks.world_size == 1 or micro == settings.accumulation - 1
                    with nullcontext() if sync else wrapped.no_sync():
                        with context:
                            logits = fuse(wrapped(clips), model.fusion)
                            loss = criterion(logits, targets)
                        scaler.scale(loss / settings.accumulation).backward()
                    loss_value = loss.item()
                    if not np.isfinite(loss_value):
                        _refuse_loss(loss_value, state.total_step + 1, batch.indices.tolist(), run)
                    sums.add(loss.detach(), logits.detach().argmax(-1), labels)
                    loss_sum += loss_value
                    clips_seen += batch.clips.shape[0] * batch.clips.shape[1]
                scaler.unscale_(optimizer)
                grad_norm = nn.utils.clip_grad_norm_(parameters, settings.clip_grad or float("inf")).item()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                state.total_step += 1
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
                lr_now = max(group["lr"] for group in optimizer.param_groups)
                row = {"step": state.total_step, "epoch": epoch, "phase": name, "seconds": seconds, **now}
                log.step({**row, "lr": lr_now, "weight_decay": rates["weight_decay"]})
                shown = {"loss": state.loss, "lr": lr_now, "clips/s": now["train/clips_per_s"]}
                console.advance(state.step, {"epoch": round(epoch, 1), **shown})
                if state.total_step % settings.log_every == 0:
                    log.log({"epoch": epoch, "phase": name, **now, **rates}, state.total_step)
                _check_faults(sums, settings, per_epoch, ranks)

                if state.step % per_epoch == 0 or state.step == total:
                    reduced = EpochSums(**{key: ranks.sum(value) for key, value in sums.tensors().items()})
                    times = {
                        "time/epoch_s": time.perf_counter() - epoch_started,
                        "time/total_s": state.seconds,
                    }
                    trained = reduced.metrics()
                    row = {f"train/{key}": value for key, value in trained.items()}
                    log.log({"epoch": epoch, "phase": name, **row, **times}, state.total_step)
                    console.info(
                        f"epoch {epoch:.4g}: train loss {trained['loss']:.4f}, top1 {trained['top1']:.4f}"
                    )
                    sums = EpochSums.zeros(num_classes, device)
                    epoch_started = time.perf_counter()

                if evaluate_due(state.step) or state.step == total:
                    found = run.evaluate(state.total_step)
                    set_train_mode(model)
                    value = found.metrics[settings.monitor]
                    improved = state.improves(value, direction)
                    state.stale = 0 if improved else state.stale + 1
                    if improved:
                        state.best, state.best_step = value, state.total_step
                    row = {f"val/{key}": value for key, value in found.metrics.items()}
                    log.log({"epoch": epoch, "phase": name, **row}, state.total_step)
                    console.info(_validation_line(epoch, found, settings.monitor, improved))
                    if improved and ranks.is_main:
                        best = {"model": model.state_dict(), "state": asdict(state), "metrics": found.metrics}
                        checkpoint.save({**run.card, **best}, run.checkpoints / "best.pt")

                # A phase ends with its last step, or early when validation has stopped improving
                stopped = settings.patience is not None and state.stale >= settings.patience
                ended = stopped or state.step == total
                keep, save = keep_due(state.step), save_due(state.step)
                if ended:
                    if stopped:
                        console.info(
                            f"phase {name} ends early: no better {settings.monitor} in {state.stale} evaluations"
                        )
                    state.phase, state.step, state.stale = state.phase + 1, 0, 0
                if save or keep or ended:
                    log.flush()  # a resumed run never writes the rows up to here again
                    payload = {
                        "model": model.state_dict(),
                        "optimizer": None if ended else optimizer.state_dict(),
                        "scaler": scaler.state_dict(),
                        "sums": ranks.gather({key: value.cpu() for key, value in sums.tensors().items()}),
                        "state": asdict(state),
                    }
                    if ranks.is_main:
                        checkpoint.save({**run.card, **payload}, run.checkpoints / "last.pt")
                        if keep:
                            checkpoint.save(
                                {**run.card, **payload}, run.checkpoints / f"step_{state.total_step:07d}.pt"
                            )
    return state


def _seed_step(seed: int, step: int, ranks: Ranks) -> None:
    """Seeds what a step draws from: the CPU's generator and this rank's device's, no others (that takes longer)."""
    number = int(np.random.SeedSequence([seed, step, ranks.rank]).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(number)
    if ranks.device.type == "cuda":
        torch.cuda.manual_seed(number)


def _every(duration: str, total: int, per_epoch: int) -> Callable[[int], bool]:
    """Whether a step of the phase is one of every `duration`; at least a step apart."""
    stride = max(1, steps(duration, total, per_epoch))
    return lambda step: step % stride == 0


def _refuse_loss(loss: float, step: int, indices: list[int], run: Run) -> None:
    files = "\n  ".join(run.train_paths[index] for index in indices)
    raise UserError(
        f"the loss is {loss} at step {step}, on these files:\n  {files}\n"
        "Lower optimizer.lr, lengthen the warmup or use trainer.precision=fp32. Nothing after this step's "
        f"beginning was saved in {run.checkpoints}"
    )


def _check_phases(run: Run, per_epoch: int) -> None:
    """Every phase before the first one starts: a fault of the last would cost the training of the others."""
    for name, phase in run.phases.items():
        if steps(phase.duration, run.settings.epochs * per_epoch, per_epoch) < 1:
            raise UserError(f"stage.{name}.duration={phase.duration} comes to no step; lengthen it")
        apply_phase(run.model, phase)
        parameter_groups(run.model, phase)


def _check_faults(sums: EpochSums, settings: TrainerSettings, per_epoch: int, ranks: Ranks) -> None:
    """Ends the run as soon as this epoch's share of unreadable videos is sure to pass the bound."""
    videos = per_epoch * settings.batch_size // ranks.world_size
    if sums.faults > settings.max_fault_share * videos:
        raise UserError(
            f"{int(sums.faults)} of this epoch's {videos} videos could not be read, more than "
            f"trainer.max_fault_share={settings.max_fault_share:.0%}; faults_rank{ranks.rank}.jsonl in the run "
            "folder names them"
        )


def _validation_line(epoch: float, found: Report, monitor: str, improved: bool) -> str:
    shown = dict.fromkeys(("loss", "top1", "clip_top1", "f1_macro", monitor))
    values = ", ".join(f"{key} {found.metrics[key]:.4f}" for key in shown if key in found.metrics)
    best = f" (best {monitor})" if improved else ""
    return f"epoch {epoch:.4g}: val {values}, coverage {found.coverage}{best}"
