"""A run of the loop without Hydra, files or videos: colored clips that a small convolutional model tells apart."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.data.loading.dataset import Batch
from vidtrain.evaluation.report import Report, report
from vidtrain.evaluation.views import ViewTable, split_heads
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.runs.frozen_encoder import head_task
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.logger_process import Loggers
from vidtrain.tracking.run_log import RunLog, read_metrics
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks
from vidtrain.training.loop import fit
from vidtrain.training.losses import Classification, CrossEntropy, Loss
from vidtrain.training.process import PreemptionHandler, Stopped
from vidtrain.training.run import PhaseSettings, PhaseTask, Run, TrainerSettings
from vidtrain.training.schedules import Constant

CPU = torch.device("cpu")
ALONE = Ranks(CPU)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class SmallConv(nn.Module):
    """A convolution per frame with a batch norm, and another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 8
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv3d(first, 8, (1, 2, 2), (1, 2, 2)), nn.BatchNorm3d(8)) for first in (3, 8)
        )

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return frames, height // 4, width // 4

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return rearrange(x, "b d t h w -> b (t h w) d")


class ToFloat(nn.Module):
    def forward(self, clips: Tensor, seeds: Tensor | None = None) -> Tensor:
        return clips.float() / 255 - 0.5


@pytest.fixture
def small_model() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(SmallConv(), MeanPoolClassifier, num_classes=3)


@pytest.fixture
def run_loop(tmp_path):
    """Trains the small model for some steps; settings by name, and what of `Run` should be another.

    `stop_after` steps it is interrupted; a second call with the same `name` resumes from last.pt.
    """
    return small_loop(tmp_path, ALONE)


def small_loop(tmp_path: Path, ranks: Ranks):
    def run(
        name: str = "run",
        stop_after: int | None = None,
        phases: dict[str, PhaseSettings] | None = None,
        loss: Loss | None = None,
        multi_label: bool = False,
        optimizer=SGD,
        preemption: PreemptionHandler | None = None,
        on_evaluation: Callable[[], None] = lambda: None,
        **settings,
    ) -> SimpleNamespace:
        torch.manual_seed(0)
        model = VideoClassifier(SmallConv(), MeanPoolClassifier, num_classes=3)
        preemption = preemption or PreemptionHandler()
        settings = TrainerSettings(**{"epochs": 3, "batch_size": 6, "log_every": 1, "save_every": "2it"} | settings)
        loss = loss or CrossEntropy()
        folder: Path = tmp_path / name
        last = folder / "checkpoints/last.pt"
        resume = checkpoint.load(last) if last.is_file() else None
        if resume:
            checkpoint.restore(model, resume["model"], str(last))

        def batches(start: int, stop: int):
            for step in range(start, stop):
                if stop_after is not None and step >= stop_after:
                    raise KeyboardInterrupt
                for micro in range(settings.accumulation):
                    seed = 1000 * ranks.rank + step * settings.accumulation + micro
                    generator = torch.Generator().manual_seed(seed)
                    yield a_batch(generator, settings.batch_size // settings.accumulation, multi_label)

        def evaluate(learner: nn.Module) -> list[Report]:
            learner.eval()
            batch = a_batch(torch.Generator().manual_seed(99), 12, multi_label)
            on_evaluation()
            if ranks.any_rank(preemption.stop_requested):
                preemption.raise_stopped()
            with torch.no_grad():
                logits = learner(ToFloat()(batch.clips))
            table = ViewTable(batch.indices, batch.labels, logits, [], 12)
            return [report(each, model.fusion, "", loss.independent) for each in split_heads(table, 3)]

        def mix(clips, labels, key):
            return clips, labels

        def frozen(phase: PhaseSettings) -> PhaseTask:
            return head_task(model, phase, ToFloat(), mix, batches, evaluate)

        log = RunLog(folder, Loggers({}), NullConsole(), ranks.is_main, ranks.rank)
        log.rewind(resume["state"]["total_step"] if resume else 0, ranks.world_size)
        console = Lines()
        weights = loss.weights(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
        try:
            state = fit(
                Run(
                    model=model,
                    transform=ToFloat(),
                    mix=mix,
                    train_batches=batches,
                    train_paths=["a.mp4"] * 100,
                    steps_per_epoch=4,
                    evaluate=lambda: evaluate(model)[0],
                    objective=Classification(loss, weights, model.fusion, model.num_classes, multi_label),
                    optimizer=optimizer,
                    lr=Constant(),
                    weight_decay=Constant(),
                    phases=phases or {"full": PhaseSettings()},
                    settings=settings,
                    ranks=ranks,
                    seed=0,
                    log=log,
                    console=console,
                    checkpoints=folder / "checkpoints",
                    metadata={},
                    frozen=frozen,
                    preemption=preemption,
                ),
                resume,
            )
        except (KeyboardInterrupt, Stopped):
            return None
        finally:
            log.close("finished")
        files = {name: checkpoint.load(folder / f"checkpoints/{name}.pt") for name in ("last", "best")}
        return SimpleNamespace(
            state=state, model=model, rows=read_metrics(folder), said=console.said, folder=folder, **files
        )

    return run


class Lines(NullConsole):
    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str) -> None:
        self.said.append(text)


def a_batch(generator: torch.Generator, size: int, multi_label: bool):
    """Clips [b 1 3 2 8 8] whose brightest channels are their labels."""
    noise = torch.randint(128, (size, 1, 3, 2, 8, 8), generator=generator, dtype=torch.uint8)
    if multi_label:
        labels = torch.randint(2, (size, 3), generator=generator).float()
        bright = labels
    else:
        labels = torch.randint(3, (size,), generator=generator)
        bright = nn.functional.one_hot(labels, 3)
    clips = noise + 127 * rearrange(bright.to(torch.uint8), "b c -> b 1 c 1 1 1")
    return Batch(clips, labels, torch.arange(size), torch.zeros(size, 1, dtype=torch.int64), [])
