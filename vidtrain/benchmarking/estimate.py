"""What a whole run would take, by the time of a step and the rate of validation."""

import math
from collections.abc import Mapping
from typing import Any

from vidtrain.training.run import PhaseSettings, TrainerSettings
from vidtrain.training.schedules import steps


def estimate(
    phases: Mapping[str, PhaseSettings],
    settings: TrainerSettings,
    steps_per_epoch: int,
    videos: Mapping[str, int],
    measured: str,
    seconds: float,
    videos_per_s: float,
) -> dict[str, Any]:
    """Seconds of an epoch, an evaluation and the whole run, and what they hold.

    A step takes `seconds` in the phase `measured`, and is assumed to take as long in the others. `videos` is the number
    of videos of each split, and `videos_per_s` how fast they are evaluated.
    """
    evaluation = _evaluated(videos["val"], settings) / videos_per_s * (1 if settings.ema is None else 2)
    training = evaluations = 0
    for each in phases.values():
        total = steps(each.duration, settings.epochs * steps_per_epoch, steps_per_epoch)
        stride = max(1, steps(settings.eval_every, total, steps_per_epoch))
        training += total
        evaluations += math.ceil(total / stride)
    closing = _evaluated(videos["test" if "test" in videos else "val"], settings) / videos_per_s
    others = ", ".join(name for name in phases if name != measured)
    assumed = f"; a step of {others} is taken to be as long as one of {measured}" if others else ""
    early = "" if settings.patience is None else "; a phase may end early"
    return {
        "steps_per_epoch": steps_per_epoch,
        "steps": training,
        "epoch_training_s": steps_per_epoch * seconds,
        "evaluation_s": evaluation,
        "evaluations": evaluations,
        "final_evaluation_s": closing,
        "total_s": training * seconds + evaluations * evaluation + closing,
        "holds": "training steps, validations and the last evaluation; not checkpoints, compiling, nor the start of "
        f"workers{assumed}{early}",
    }


def _evaluated(videos: int, settings: TrainerSettings) -> int:
    """How many videos an evaluation reads of a split."""
    every = math.ceil(videos / (settings.max_eval_videos or videos))
    return math.ceil(videos / every)
