"""The benchmark's steps against the loop's, its parts against their sum, and FLOPs against counting by hand."""

import copy
import itertools
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.benchmarking import measure as benchmarking
from vidtrain.benchmarking.measure import PhaseSteps, Timed, count_free_cores, doubled
from vidtrain.benchmarking.report import count_flops, estimate, known_peak
from vidtrain.data.loading.dataset import Batch, StoreUse
from vidtrain.errors import UserError
from vidtrain.evaluation.report import Report, report
from vidtrain.evaluation.views import ViewTable
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.logger_process import Loggers
from vidtrain.tracking.run_log import RunLog
from vidtrain.training.distributed import Ranks, autocast
from vidtrain.training.loop import fit
from vidtrain.training.losses import Classification, CrossEntropy
from vidtrain.training.profiling import PARTS, StepClock, peak_memory
from vidtrain.training.run import PhaseSettings, Run, TrainerSettings
from vidtrain.training.schedules import Constant

CPU = torch.device("cpu")
STEPS = 6


class Small(nn.Module):
    """Two layers per pixel with dropout, which draws from the step's seed, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 8
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2)),
                nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
            ]
        )

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return frames, height, width

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        tokens = rearrange(x, "b c t h w -> (b t h w) c")
        for block in self.blocks:
            tokens = block(tokens).relu()
        return rearrange(tokens, "(b n) d -> b n d", b=b)


class ToFloat(nn.Module):
    def forward(self, clips: Tensor, seeds: Tensor | None = None) -> Tensor:
        return clips.float() / 255


def batches(size: int, start: int, stop: int):
    for number in range(start, stop):
        generator = torch.Generator().manual_seed(number)
        clips = torch.randint(256, (size, 1, 3, 2, 4, 4), generator=generator, dtype=torch.uint8)
        labels = torch.randint(3, (size,), generator=generator)
        yield Batch(clips, labels, torch.arange(size), torch.zeros(size, 1, dtype=torch.int64), [])


@pytest.fixture
def a_run(tmp_path):
    """A run of one phase of `STEPS` steps; a new model of the same weights each time."""

    def make(**settings) -> Run:
        torch.manual_seed(0)
        model = VideoClassifier(Small(), MeanPoolClassifier, num_classes=3)
        settings = TrainerSettings(**{"epochs": 1, "batch_size": 4, "save_every": "100it", "ema": 0.9} | settings)

        def evaluate() -> Report:
            logits = torch.eye(3)[:, None]
            table = ViewTable(torch.arange(3), torch.arange(3), logits, [], 3)
            return report(table, "mean_logits", "")

        def stream(start: int, stop: int):
            of_micro_batches = (start * settings.accumulation, stop * settings.accumulation)
            return batches(settings.batch_size // settings.accumulation, *of_micro_batches)

        folder: Path = tmp_path / "run"
        return Run(
            model=model,
            transform=ToFloat(),
            mix=lambda clips, labels, key: (clips, labels),
            train_batches=stream,
            train_paths=["a.mp4"] * 100,
            steps_per_epoch=STEPS,
            evaluate=evaluate,
            objective=Classification(CrossEntropy(label_smoothing=0.1), None, model.fusion, model.num_classes),
            optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
            lr=Constant(),
            weight_decay=Constant(),
            phases={"full": PhaseSettings(), "head_only": PhaseSettings(duration="3it", encoder_blocks=0)},
            settings=settings,
            ranks=Ranks(CPU),
            seed=0,
            log=RunLog(folder, Loggers({}), NullConsole(), is_main=True, rank=0),
            console=NullConsole(),
            checkpoints=folder / "checkpoints",
            metadata={},
        )

    return make


@pytest.mark.parametrize("settings", [{}, {"accumulation": 2}, {"precision": "bf16", "clip_grad": None}])
def test_its_steps_are_those_of_the_loop_to_the_last_bit(a_run, settings):
    ours, theirs = a_run(**settings), a_run(**settings)
    theirs.phases.pop("head_only")
    fit(theirs)
    phase = PhaseSteps(ours, "full")
    timed = benchmarking.time_steps(phase, iter(ours.train_batches(0, STEPS)), 2, STEPS - 2, lambda _: None)
    assert phase.phase.total == phase.state.total_step == STEPS
    assert timed.clips == (STEPS - 2) * 4
    for (name, mine), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def test_a_phase_trains_what_it_says(a_run):
    run = a_run()
    before = copy.deepcopy(run.model.state_dict())
    phase = PhaseSteps(run, "head_only")
    benchmarking.time_steps(phase, iter(run.train_batches(0, 3)), 0, 3, lambda _: None)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("head.") for name in moved)


def test_parts_sum_to_the_step_and_steps_to_the_whole(a_run):
    run = a_run(accumulation=2)
    phase = PhaseSteps(run, "full")

    def slowly(source):
        for batch in source:
            time.sleep(0.02)
            yield batch

    timed = benchmarking.time_steps(phase, slowly(run.train_batches(0, STEPS)), 1, STEPS - 1, lambda _: None)
    assert len(timed.parts) == STEPS - 1
    assert all(tuple(parts) == PARTS and min(parts.values()) >= 0 for parts in timed.parts)
    summary = benchmarking.summarize(timed.parts)
    assert tuple(summary) == (*PARTS, "step")
    assert sum(summary[part]["mean"] for part in PARTS) == pytest.approx(summary["step"]["mean"])
    # the clock leaves out only reading it, and beginning and ending
    total = sum(sum(parts.values()) for parts in timed.parts)
    assert total <= timed.seconds
    # two waits of 20 ms a step belong to loading
    assert all(parts["load"] >= 0.04 for parts in timed.parts)


def test_a_batch_that_must_end_a_run_ends_the_measurement(a_run):
    phase = PhaseSteps(a_run(), "full")
    (batch,) = batches(4, 0, 1)
    with pytest.raises(UserError, match=r"3 videos in a row"):
        phase.step(iter([batch._replace(refusal="3 videos in a row could not be read")]), StepClock(CPU))


def test_the_model_alone_makes_the_same_batch_again(a_run):
    run = a_run()
    phase = PhaseSteps(run, "full")
    (batch,) = batches(4, 0, 1)
    timed = benchmarking.time_compute(phase, batch, 2, 0.0, 10, lambda _: None)
    assert timed.clips == 3 * 4  # no fewer than three steps
    assert phase.state.total_step == 2 + 1 + 3


def test_the_loader_alone_leaves_out_the_first_round_and_takes_whole_ones():
    taken = []

    def source():
        for number, batch in enumerate(batches(4, 0, 1000)):
            taken.append(number)
            yield batch

    told = []
    timed = benchmarking.time_loader(source(), 2, 3, 0.0, told.append)
    # rounds of 2 workers in whole steps of 3 micro-batches are 3... of which one is left out and two are timed
    assert len(taken) == 3 + 6
    assert timed.clips == 6 * 4
    assert told == [1, 2, 3, 4, 5, 6]


def test_rates_go_by_the_slowest_rank():
    assert benchmarking.rate([(100, 2.0)]) == 50
    assert benchmarking.rate([(100, 2.0), (100, 4.0)]) == 50  # twice 25
    step = {"step": {"mean": 1.0}}
    assert benchmarking.slowest_rank([step | {"backward": {"mean": 0.6}}, step | {"backward": {"mean": 0.5}}]) == 1


def test_summaries_hold_mean_quartiles_and_share():
    steps = [{**dict.fromkeys(PARTS, 0.0), "load": load, "forward": 4.0} for load in (1.0, 2.0, 3.0, 4.0, 10.0)]
    summary = benchmarking.summarize(steps)
    assert summary["load"] == {"mean": 4.0, "median": 3.0, "p25": 2.0, "p75": 4.0, "share": 0.5}
    assert summary["step"] == {"mean": 8.0, "median": 7.0, "p25": 6.0, "p75": 8.0, "share": 1.0}


def test_timed_steps_add_up():
    one = Timed([{"load": 1.0}], 4, 2.0, (StoreUse(2.0, 1.0, 6, 4_000_000),))
    assert one + one == Timed([{"load": 1.0}, {"load": 1.0}], 8, 4.0, 2 * one.stores)


def test_what_a_clip_takes_of_a_store():
    one, two = (Timed([], 4, 2.0, (StoreUse(4.0, waited, 6, 4_000_000),)) for waited in (2.0, 3.0))
    assert benchmarking.store_use([one, two]) == {
        "share": 0.625,
        "requests_per_clip": 1.5,
        "mb_per_clip": 1.0,
    }
    assert benchmarking.store_use([Timed([], 4, 2.0, (StoreUse(),))]) is None


# --- arithmetic and memory --------------------------------------------------------------------------------


class Convolved(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.convolution = nn.Conv3d(4, 8, (1, 3, 3), padding=(0, 1, 1), groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x[:, 0])


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_has_two_flops_for_each_product(groups):
    with torch.device("meta"):
        model, clip = Convolved(groups), torch.empty(1, 1, 4, 2, 5, 5, requires_grad=True)
    forward = 2 * (2 * 5 * 5) * 8 * (4 // groups) * 9
    # gradients of the weight and of the input cost as much each
    assert count_flops(model, clip) == (forward, 3 * forward)


def test_frozen_parts_have_no_gradients_to_count():
    with torch.device("meta"):
        model, clip = (
            VideoClassifier(Small(), MeanPoolClassifier, num_classes=3),
            torch.empty(1, 1, 3, 2, 4, 4),
        )
    tokens = 2 * 4 * 4
    layers = 2 * tokens * (3 * 8 + 8 * 8)
    head = 2 * 8 * 3
    forward, both = count_flops(model, clip)
    assert forward == layers + head
    # no gradient of the clip itself
    assert both == 3 * (layers + head) - 2 * tokens * 3 * 8
    model.encoder.requires_grad_(False)
    # the head's norm trains, so its linear layer has both gradients
    assert count_flops(model, clip) == (forward, forward + 2 * head)
    assert [each.requires_grad for each in model.parameters()] == [False] * 6 + [True] * 4


def test_attention_is_counted():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, clip: Tensor) -> Tensor:
            q = rearrange(clip, "1 1 c t h w -> 1 t (h w) c") * self.scale
            return nn.functional.scaled_dot_product_attention(q, q, q)

    with torch.device("meta"):
        found, _ = count_flops(Attention(), torch.empty(1, 1, 8, 2, 4, 4))
    assert found == 2 * 2 * (2 * 16 * 16 * 8)  # two products, of two heads


def test_peaks_are_known_by_the_names_of_devices():
    assert known_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert known_peak("NVIDIA H100 PCIe", "fp16") == 756e12
    assert known_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert known_peak("NVIDIA L40S", "bf16") == 362e12
    assert known_peak("Tesla T4", "fp16") == 65e12
    assert known_peak("NVIDIA GeForce RTX 9999", "bf16") is None


def test_memory_of_a_process_without_a_gpu():
    found = peak_memory(CPU)
    assert set(found) == {"gpu_allocated", "gpu_reserved", "gpu_total", "process", "workers"}
    assert found["process"] > 50e6
    assert found["gpu_allocated"] is None


def test_the_clock_gives_each_part_what_passed_since_the_last_mark():
    clock = StepClock(CPU)
    clock.begin()
    for _ in itertools.repeat(None, 2):
        time.sleep(0.01)
        clock.mark("load")
        clock.mark("forward")
        time.sleep(0.02)
        clock.mark("backward")
        clock.mark("load")
        clock.end_step()
    first, second = clock.seconds()
    for found in (first, second):
        assert found["load"] >= 0.01 and found["backward"] >= 0.02
        assert found["optimizer"] == 0


# --- a whole run ------------------------------------------------------------------------------------------

VIDEOS = {"train": 20, "val": 10, "test": 20}


def planned(phases, settings, seconds=1.0):
    run = SimpleNamespace(phases=phases, settings=settings, steps_per_epoch=4)
    return estimate(run, "full", VIDEOS, seconds, 10.0)


def test_the_estimate_of_a_run_in_phases():
    phases = {"head_only": PhaseSettings("20%"), "full": PhaseSettings("7it")}
    plan = planned(phases, TrainerSettings(epochs=5), 2.0)
    # 4 steps of 20, evaluated once; 7 steps, evaluated after 4 and 7
    assert (plan["steps"], plan["evaluations"]) == (11, 3)
    assert plan["epoch_training_s"] == 8
    assert plan["evaluation_s"] == 1
    assert plan["total_s"] == 22 + 3 * 1 + 2
    assert "a step of head_only is assumed to take as long as one of full" in plan["holds"]


def test_an_average_is_validated_too_and_a_quick_look_reads_few():
    settings = TrainerSettings(epochs=2, ema=0.9, max_eval_videos=5, eval_every="4ep")
    plan = planned({"full": PhaseSettings()}, settings)
    assert plan["evaluation_s"] == 2 * 5 / 10
    assert plan["final_evaluation_s"] == 5 / 10
    assert plan["total_s"] == 8 + 1 + 0.5


def test_one_process_has_the_core_it_has():
    assert count_free_cores(1) == 1
    assert 1 <= count_free_cores(2, seconds=0.02, rounds=1) <= 2


def test_a_variant_trains_the_same_weights_and_leaves_the_phase_as_it_is(a_run):
    phase = PhaseSteps(a_run(), "full")
    before, plain = copy.deepcopy(phase.model.state_dict()), phase.phase.autocast
    variant = phase.variant(autocast=autocast(phase.run.ranks, "bf16"))
    assert variant.phase.autocast.fast_dtype is torch.bfloat16 and phase.phase.autocast is plain
    benchmarking.time_steps(variant, batches(4, 0, 1), 0, 1, lambda _: None)
    assert phase.state.total_step == 1
    assert any(not torch.equal(tensor, before[name]) for name, tensor in phase.model.state_dict().items())


def test_a_doubled_batch_holds_its_samples_twice():
    (batch,) = batches(2, 0, 1)
    twice = doubled(batch)
    assert torch.equal(twice.clips, torch.cat([batch.clips, batch.clips]))
    assert twice.labels.tolist() == batch.labels.tolist() * 2 and twice.faults == batch.faults
