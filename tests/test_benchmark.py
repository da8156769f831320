"""The benchmarking program: what it leaves, what it says to mistakes, and two ranks."""

import json

import pytest
from composing import config_of
from fork_server import run_program
from omegaconf import OmegaConf
from small_run import small

from vidtrain.app.check import unjoined_ranks
from vidtrain.app.launch import find_faults
from vidtrain.benchmark import benchmark, check
from vidtrain.benchmarking.advice import Advice
from vidtrain.benchmarking.measure import Meter
from vidtrain.benchmarking.report import follow
from vidtrain.config.schemas import BenchmarkConfig, RunConfig
from vidtrain.errors import UserError
from vidtrain.runs.assemble import open_data
from vidtrain.tracking.console import NullConsole
from vidtrain.training.profiling import PARTS

SMALL = small(
    "trainer.epochs=6",
    "trainer.batch_size=4",
    "steps=4",
    "warmup=1",
    "rounds=1",
    depth=2,
)


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Rates of so small a run need not be right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidtrain.benchmarking.measure.ALONE_SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def composed(data_root, *overrides):
    return config_of("benchmark", *SMALL, f"data_root={data_root}", *overrides)


@pytest.fixture(scope="module")
def measured(data_root, tmp_path_factory):
    """What a benchmark of a small run wrote, with its advice followed."""
    out = tmp_path_factory.mktemp("out")
    cfg = composed(data_root, f"out={out}", "prove=true", "stage=progressive", "phase=unfreeze_last")
    rate = benchmark(cfg)
    return rate, json.loads((out / "benchmark.json").read_text())


def test_it_composes_what_the_training_app_composes():
    for more in ([], ["experiment=motion_single_frame", "debug=smoke", "stage=progressive"]):
        run, ours = (OmegaConf.to_container(config_of(name, *more)) for name in ("train", "benchmark"))
        own = BenchmarkConfig.__dataclass_fields__.keys() - RunConfig.__dataclass_fields__.keys()
        assert {key: value for key, value in ours.items() if key not in own} == run


@pytest.mark.slow
def test_the_json_holds_what_was_measured(measured):
    rate, found = measured
    assert set(found) == {
        "name", "phase", "device", "settings", "steps", "warmup", "parameters", "flops", "slowest_rank", "parts",
        "by_rank", "seconds_per_step", "steps_per_s", "clips_per_s", "clips_per_step", "alone", "faults", "memory",
        "evaluation_videos_per_s", "estimate", "verdict", "measured", "advice", "notes", "proof",
        "store",
    }  # fmt: skip
    assert found["phase"] == "unfreeze_last"
    assert tuple(found["parts"]) == (*PARTS, "step")
    for values in found["parts"].values():
        assert set(values) == {"mean", "median", "p25", "p75", "share"}
        assert 0 <= values["p25"] <= values["median"] <= values["p75"]
    assert sum(found["parts"][part]["mean"] for part in PARTS) == pytest.approx(found["parts"]["step"]["mean"])
    assert found["clips_per_step"] == 4
    assert found["clips_per_s"] == pytest.approx(4 * found["steps_per_s"], rel=1e-6) == rate
    # the clock's steps fill the wall time but for the ends of the two series
    assert found["parts"]["step"]["mean"] <= found["seconds_per_step"] * 1.001
    assert found["parameters"]["trained"] < found["parameters"]["total"]
    assert found["flops"]["training_per_clip"] > found["flops"]["forward_per_clip"] > 1e5
    assert found["flops"]["utilization"] is None  # of a processor that has no known peak
    assert found["verdict"]["bound"] in ("decoding", "cores", "transfer", "compute", "balanced")
    assert found["memory"][0]["process"] > 0 and found["memory"][0]["gpu_total"] is None
    assert found["measured"]["workers"] == 0


@pytest.mark.slow
def test_the_estimate_counts_what_a_run_makes(measured):
    _, found = measured
    planned = found["estimate"]
    assert planned["steps_per_epoch"] == 5  # 20 videos in batches of 4
    assert planned["steps"] == 30
    # one an epoch of the phases of 6, 9 and 15 steps, and one where each ends: 2 + 2 + 3
    assert planned["evaluations"] == 7
    seconds = found["seconds_per_step"]
    assert planned["epoch_training_s"] == pytest.approx(5 * seconds)
    assert planned["evaluation_s"] == pytest.approx(10 / found["evaluation_videos_per_s"])
    assert planned["total_s"] == pytest.approx(
        30 * seconds + 7 * planned["evaluation_s"] + planned["final_evaluation_s"]
    )
    assert "head_only, full" in planned["holds"]


@pytest.mark.slow
def test_advice_is_followed_in_turn(data_root):
    cfg = composed(data_root, "rounds=2")
    ranks = unjoined_ranks()
    meter = Meter(cfg, open_data(cfg, ranks, NullConsole()), ranks, NullConsole())
    proof = follow(meter, Advice({"trainer.num_workers": 1}, 10.0, 2.0, ""), rounds=2)
    assert proof["followed"] == "trainer.num_workers=1"
    assert len(proof["before"]) == len(proof["after"]) == 2
    assert min(*proof["before"], *proof["after"]) > 0
    assert cfg.trainer.num_workers == 0  # the run itself is left as it is


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps=0", "steps: 0 must be 2 or more"),
        ("rounds=0", "rounds: 0 must be 1 or more"),
        ("warmup=-1", "warmup: -1 must be 0 or more"),
        ("peak_tflops=0", "peak_tflops: 0.0 must be above 0"),
        ("phase=ful", "phase: the stage has no phase ful; did you mean full?"),
        ("stesp=5", "there is no key stesp; did you mean steps?"),
        ("trainer.epohcs=3", "trainer has no key epohcs; did you mean epochs?"),
    ],
)
def test_a_mistake_is_named(override, said):
    (found,) = find_faults("benchmark", [override], check)
    assert said in ": ".join(found)


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    cfg = composed(tmp_path, "dataset=class_folders", f"dataset.source.root={tmp_path / 'absent'}",
                   "dataset.name=mine", f"out={tmp_path / 'out'}", "~dataset.source.train_per_class",
                   "~dataset.source.val_per_class", "~dataset.source.test_per_class", "~dataset.source.frames",
                   "~dataset.source.size")  # fmt: skip
    with pytest.raises(UserError, match="absent"):
        benchmark(cfg)


@pytest.mark.slow
def test_two_ranks_agree(data_root, tmp_path):
    out = tmp_path / "out"
    overrides = [*SMALL, f"data_root={data_root}", f"out={out}", "prove=true", "trainer.accumulation=2"]
    done = run_program("benchmark", *overrides, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "benchmark.json").read_text())
    assert found["device"]["ranks"] == len(found["by_rank"]) == len(found["memory"]) == 2
    assert found["clips_per_step"] == 4  # of both
    assert found["slowest_rank"] in (0, 1)
    assert "the slowest" in done.stdout
    assert done.stdout.count("all results are in") == 1


@pytest.mark.slow
def test_help_shows_an_example_and_steps_of_zero_end_with_status_2():
    said = run_program("benchmark", "--help").stdout
    assert "python -m vidtrain.benchmark experiment=motion_baseline" in said and "prove: false" in said
    done = run_program("benchmark", "steps=0")
    assert done.returncode == 2
    assert "steps: 0 must be 2 or more" in done.stderr and "Traceback" not in done.stderr
