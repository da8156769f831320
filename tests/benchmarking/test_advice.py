"""What bounds a run and what to change, from literal rates."""

from dataclasses import replace

import pytest

from vidtrain.benchmarking.advice import (
    Advice,
    Measured,
    Prepared,
    advise,
    expected,
    verdict,
)
from vidtrain.benchmarking.report import nothing_to_change


def measured(load=0.0, transfer=0.0, **more) -> Measured:
    """A step whose work takes a second, of which `transfer` is copying, after `load` seconds of waiting."""
    rest = 1 - transfer
    parts = {"load": load, "transfer": transfer, "augment": 0.0, "forward": 0.3 * rest, "backward": 0.6 * rest,
             "optimizer": 0.1 * rest}  # fmt: skip
    return Measured(**{"device": "cuda", "cores": 8, "workers": 2, "threads": 0, "parts": parts} | more)


DECODING = {"load": 2.9, "run": 30.0, "compute": 120.0, "loaders": {2: 31.0}}
STORE = {"share": 0.8, "requests_per_clip": 1.52, "mb_per_clip": 2.9}
CROWDED = {"device": "cpu", "cores": 2, "workers": 2, "threads": 2, "run": 60.0, "compute": 100.0}


@pytest.mark.parametrize(
    ("case", "bound", "words"),
    [
        (
            DECODING,
            "decoding",
            "a step waits 74% of its time for data; alone the loader delivers 31 clips/s and",
        ),
        (
            DECODING | {"store": STORE},
            "store",
            "loaders wait 80% of their time for it, with 1.52 requests and 2.9 MB a clip; a step waits 74%",
        ),
        (DECODING | {"store": STORE | {"share": 0.4}}, "decoding", "a step waits 74%"),
        (
            {"load": 0.4, "workers": 0, "run": 70.0, "compute": 100.0, "loaders": {0: 250.0}},
            "decoding",
            "without workers a step spends 29% of its time reading",
        ),
        (
            {"run": 100.0, "compute": 101.0, "loaders": {2: 400.0}},
            "compute",
            "forward 30%, backward 60%, optimizer 10%",
        ),
        (
            {"transfer": 0.5, "run": 100.0, "compute": 101.0, "loaders": {2: 400.0}},
            "transfer",
            "transfer 50%",
        ),
        ({"load": 0.15, "run": 92.0, "compute": 100.0, "loaders": {2: 98.0}}, "balanced", "waits 13%"),
        ({"run": 97.0, "compute": 100.0, "loaders": {2: 105.0}}, "balanced", "just keeps up"),
        (
            {**CROWDED, "loaders": {2: 150.0}},
            "cores",
            "workers (2) and computing threads (2) share the cores (2)",
        ),
        ({**CROWDED, "load": 0.3, "loaders": {2: 95.0}}, "cores", "waits 23%"),
    ],
)
def test_the_verdict_names_what_bounds_and_its_figures(case, bound, words):
    found = verdict(measured(**case))
    assert found.bound == bound
    assert words in found.text


def test_a_decoding_bound_run_is_given_the_fewest_workers_that_feed_the_model():
    m = measured(**DECODING | {"loaders": {1: 16.0, 2: 31.0, 4: 62.0, 8: 124.0}})
    (found,) = advise(m)
    assert found.settings == {"trainer.num_workers": 8}
    # the lesser of 124 and 120, times 30 of 31 as now
    assert found.clips_per_s == pytest.approx(120 * 30 / 31)
    assert found.gain == pytest.approx(120 / 31)
    assert found.text == "trainer.num_workers=8"

    faster = measured(**DECODING | {"compute": 60.0, "loaders": {2: 31.0, 4: 62.0, 8: 124.0}})
    assert advise(faster)[0].settings == {"trainer.num_workers": 4}


def test_workers_that_cores_do_not_serve_are_not_advised():
    # eight workers on cores that two saturate, as measured
    m = measured(**DECODING | {"loaders": {2: 31.0, 4: 31.5, 8: 30.0}})
    assert advise(m) == []
    assert "clip.repeated_augmentation=2" in nothing_to_change(m, "decoding")


def test_reading_in_the_training_process_adds_to_the_step_until_there_is_a_worker():
    m = measured(load=0.5, device="cpu", cores=2, workers=0, threads=1, run=66.0, compute=100.0,
                 loaders={0: 200.0, 1: 190.0})  # fmt: skip
    assert expected(m, 0, 200.0, 100.0, 1) == pytest.approx(66.0)
    (found,) = advise(m)
    assert found.settings == {"trainer.num_workers": 1}
    # 100 of the model, times 66 of 66.7
    assert found.clips_per_s == pytest.approx(100 * 66 / (200 / 3))


def test_on_a_cpu_no_more_is_expected_than_the_cores_can_do():
    # a clip costs 10 ms of decoding and 2 x 5 ms of computing: two cores make 100 a second
    m = measured(device="cpu", cores=2, workers=1, threads=1, run=99.0, compute=100.0,
                 loaders={1: 100.0}, threaded={2: 200.0})  # fmt: skip
    assert expected(m, 1, 100.0, 200.0, 2) == pytest.approx(99.0)
    assert advise(m) == []


def test_crowded_cores_are_relieved_of_workers():
    # decoding costs 4 ms a clip and computing 2 x 10 ms: one worker is enough, and takes less of the cores
    m = measured(device="cpu", cores=2, workers=8, threads=1, run=60.0, compute=100.0,
                 loaders={1: 250.0, 2: 400.0, 8: 300.0}, load=0.3)  # fmt: skip
    assert verdict(m).bound == "cores"
    assert all("trainer.num_workers" not in each.settings or each.settings["trainer.num_workers"] < 8
               for each in advise(m))  # fmt: skip


def test_a_prepared_copy_is_advised_by_what_it_gains():
    def advice(gain: float, exists: bool = False) -> list[Advice]:
        return advise(measured(**DECODING | {"prepared": Prepared("short256_gop12", gain, exists)}))

    (copy,) = advice(3.0)
    assert copy.settings == {"data.prepared": "short256_gop12"}
    assert copy.first == "vidtrain.prepare"
    assert copy.gain == pytest.approx(3.0)
    assert advice(3.0, exists=True)[0].first is None
    assert advice(1.02) == []


def test_what_changes_training_comes_last_and_says_so():
    computes = {
        "trainer.precision=bf16": 300.0,
        "trainer.batch_size=64": 130.0,
        "trainer.compile=true": 150.0,
    }
    m = measured(run=100.0, compute=100.0, loaders={2: 400.0}, computes=computes)
    found = advise(m)
    assert [each.text for each in found] == [
        "trainer.compile=true",
        "trainer.precision=bf16",
        "trainer.batch_size=64",
    ]
    assert found[0].settings == {"trainer.compile": True}
    assert [each.changes for each in found] == [
        None,
        "forward passes compute in bfloat16",
        "a larger batch may need another learning rate",
    ]
    assert [each.gain for each in found] == pytest.approx([1.5, 3.0, 1.3])


def test_a_loader_that_just_keeps_up_bounds_what_a_faster_model_brings():
    m = measured(run=100.0, compute=100.0, loaders={2: 108.0}, computes={"trainer.compile=true": 200.0})
    assert advise(m)[0].clips_per_s == pytest.approx(108.0)


def test_activations_are_kept_where_memory_is_free():
    m = measured(run=100.0, compute=100.0, loaders={2: 400.0}, checkpointing=True, free_memory=0.7)
    (found,) = advise(m)
    assert found.settings == {"model.encoder.activation_checkpointing": False}
    # without a second forward pass of 0.3 in 1
    assert found.gain == pytest.approx(1 / 0.7)
    assert advise(replace(m, free_memory=0.2)) == []


def test_nothing_under_five_per_cent_is_advised():
    m = measured(run=100.0, compute=100.0, loaders={2: 400.0}, computes={"trainer.compile=true": 104.0})
    assert advise(m) == []
    assert "smaller model" in nothing_to_change(m, "compute")


def test_every_bound_has_words_for_when_nothing_helps():
    m = measured(run=100.0, compute=100.0, loaders={2: 400.0})
    for bound in ("decoding", "cores", "transfer", "balanced", "compute"):
        assert nothing_to_change(m, bound)


def test_settings_are_written_as_overrides():
    advice = Advice({"trainer.num_workers": 2, "trainer.compile": True}, 1.0, 1.0, "")
    assert advice.text == "trainer.num_workers=2 trainer.compile=true"


def test_cores_that_others_use_are_not_counted_on():
    # reading 5 ms and computing 10 ms a clip, one after the other; two processes do the work of 1.2
    m = measured(load=0.5, device="cpu", cores=2, workers=0, threads=1, run=66.0, compute=100.0,
                 loaders={0: 200.0, 1: 200.0}, free_cores=1.2)  # fmt: skip
    (found,) = advise(m)
    assert found.gain == pytest.approx(1.2)
