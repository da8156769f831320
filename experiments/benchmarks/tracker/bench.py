"""What each tracker costs a training step: the loop on one batch in memory, with each logger in turn.

python experiments/benchmarks/tracker/bench.py [override ...]

A round runs the same steps with every logger, in an order that changes from round to round. Two figures a logger: the
share of a step that is spent in calls to the tracker, which noise hardly touches, and the step's time against that of
logger=none in the same round, which holds what the tracker's process takes of the processor too.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vidtrain.build import parts as build
from vidtrain.config.targets import CONF, register_schemas
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.logger_process import LoggedRun, Loggers
from vidtrain.tracking.run_log import RunLog
from vidtrain.training.distributed import Ranks
from vidtrain.training.loop import fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from one_batch import CLASSES, batch_of, run_of

LOGGERS = ("none", "wandb_offline", "tensorboard", "mlflow", "[wandb_offline,tensorboard,mlflow]")
ROUNDS, STEPS, WARMUP = 9, 60, 10


class Timed(Loggers):
    """Loggers that count the seconds that their calls take, by the clock and of the processor."""

    seconds = 0.0
    cpu_seconds = 0.0

    def log(self, metrics, step):
        started, cpu = time.perf_counter(), time.thread_time()
        super().log(metrics, step)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.thread_time() - cpu


def composed(overrides: list[str], logger: str) -> DictConfig:
    changes = ["trainer.epochs=1", f"trainer.steps_per_epoch={STEPS}", *overrides, f"logger={logger}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", changes)


def measure(cfg: DictConfig, folder: Path) -> tuple[float, float, float]:
    """Milliseconds: the median step, and what of it the tracker's calls take on average, by the clock and of the
    processor."""
    ranks = Ranks(torch.device("cpu"))
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    model, batch = build.model(cfg, CLASSES, ranks), batch_of(cfg)
    logger = Timed(build.instantiate_component(cfg.logger))
    log = RunLog(folder, logger, NullConsole(), is_main=True, rank=0)
    at: list[float] = []
    log.step = lambda row: at.append(time.perf_counter())
    logger.start(LoggedRun(folder, folder.name, folder.name, "bench", {"seed": 0}))
    time.sleep(8 if cfg.logger else 0)  # trackers start beside the training, which is not what is measured
    fit(run_of(cfg, model, ranks, log, folder, lambda start, stop: [batch] * (stop - start), STEPS))
    log.close("finished")
    steps = [after - before for before, after in zip(at, at[1:], strict=False)][WARMUP:]
    return statistics.median(steps) * 1e3, logger.seconds / STEPS * 1e3, logger.cpu_seconds / STEPS * 1e3


def main(overrides: list[str]) -> None:
    register_schemas()
    found: dict[str, list[tuple[float, float, float]]] = {logger: [] for logger in LOGGERS}
    with tempfile.TemporaryDirectory() as temporary:
        store = f"logger.mlflow.tracking_uri=sqlite:///{temporary}/mlflow.db"
        for number in range(ROUNDS):
            shift = number % len(LOGGERS)
            for logger in (*LOGGERS[shift:], *LOGGERS[:shift]):
                more = [store] if "mlflow" in logger else []
                cfg = composed([*overrides, *more], logger)
                found[logger].append(measure(cfg, Path(temporary) / f"{number}_{LOGGERS.index(logger)}"))
    print("| logger | step, ms | against none (rounds) | in calls, ms a step | of the processor | share |")
    print("|---|---|---|---|---|---|")
    for logger, measured in found.items():
        pairs = zip(measured, found["none"], strict=True)
        ratios = sorted(step / none for (step, *_), (none, *_) in pairs)
        step, calls, cpu = (statistics.median(each) for each in zip(*measured, strict=True))
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"| {logger.strip('[]')} | {step:.1f} | {spread} | {calls:.3f} | {cpu:.3f} | {calls / step:.2%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
