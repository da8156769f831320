"""The command line: what it asks for by name, and what it says to a mistake."""

import re
import subprocess
import sys

import pytest

from vidtrain import check
from vidtrain.app import find_faults
from vidtrain.config import register_schemas
from vidtrain.run_folder import with_stored_overrides

register_schemas()


def faults(*overrides):
    return [": ".join(fault) for fault in find_faults("train", overrides, check.check_run)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.epohcs=3", "trainer.epohcs: trainer has no key epohcs; did you mean epochs?"),
        ("optimzer=adamw", "optimzer: there is no key optimzer; did you mean optimizer?"),
        ("optimizer=adamv", "optimizer: group optimizer has no option adamv; did you mean adam"),
        ("model=vit3d_tini", "model: group model has no option vit3d_tini; did you mean vit3d_tiny?"),
        (
            "trainer.epochs=many",
            "trainer.epochs: Value 'many' of type 'str' could not be converted to Integer",
        ),
        ("optimizer.wieght_decay=0.1", "optimizer has no key wieght_decay; did you mean weight_decay?"),
        ("+optimizer.wieght_decay=0.1", "torch.optim.AdamW has no such argument"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' is not"),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("optimizer.betas=[0.9]", "optimizer.betas: [0.9] is not"),
        ("clip.interpolation=bicubik", "clip.interpolation: bicubik is unknown; did you mean bicubic?"),
        ("trainer.batch_size=15", None),
        (
            "trainer.accumulation=3",
            "trainer: trainer.batch_size=16 cannot be shared by 1 rank(s) x 3 accumulation",
        ),
        ("clip.frames=7", "clip.frames"),
        ("clip.size=30", "clip.size"),
        ("clip.size=big", "clip: clip.size=big must be one number of pixels, or [height, width]"),
        ("clip.fps=12", "clip: a clip's stride is given by exactly one of frame_step, fps and duration"),
        ("clip.short=pad", "clip: short=pad: choose one of repeat_last, wrap, error"),
        ("trainer.precision=fp8", "trainer.precision: fp8 is unknown; known: fp32, bf16, fp16"),
        ("trainer.monitor=top2", "trainer.monitor: top2 is unknown; did you mean top"),
        ("trainer.save_every=1", "trainer.save_every: '1' is not a duration: write 3ep"),
        ("schedule.lr.warmup=lots", "schedule: 'lots' is not a duration"),
        ("stage.full.duration=half", "stage.full.duration: 'half' is not a duration"),
        ("model.fusion=vote", "model.fusion"),
        ("model.encoder.num_heads=5", "model.encoder.num_heads"),
        ("dataset.source._target_=vidtrain.data.sources.motion.Moton", "cannot be imported"),
        ("augmentation.eval.crops=0", "augmentation: crops=0: must be 1 or more"),
        ("trainer.batch_size=0", "trainer.batch_size: 0 must be 1 or more"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_a_way_out(override, expected):
    found = faults(override)
    if expected is None:
        assert found == []
        return
    assert len(found) == 1, found
    assert expected in found[0]
    assert f"override '{override}'" in found[0] or "conf/" in found[0] or "the configuration" in found[0]


def test_all_faults_come_at_once():
    found = faults("trainer.epohcs=3", "model=vit3d_tini", "+optimizer.wieght_decay=0.1", "clip.frames=7")
    assert [line.split("'")[1].split("=")[0] for line in found[:3]] == [
        "trainer.epohcs", "model", "+optimizer.wieght_decay",
    ]  # fmt: skip
    assert len(found) == 4
    assert "clip.frames" in found[3]


def test_an_override_may_depend_on_a_later_choice():
    assert faults("optimizer.momentum=0.8", "optimizer=sgd") == []


def test_a_sweeps_first_values_are_checked():
    assert faults("optimizer.lr=1e-3,1e-4", "seed=range(3)") == []
    assert "has no option vit3d_tini" in faults("model=vit3d_tini,vit3d_tiny")[0]


def test_resuming_takes_the_stored_overrides_first(tmp_path):
    (tmp_path / "run.json").write_text('{"overrides": ["optimizer.lr=0.1", "seed=3", "model=vit3d_tiny"]}')
    said = [f"run_dir={tmp_path}", "seed=4"]
    assert with_stored_overrides(said) == ["optimizer.lr=0.1", "model=vit3d_tiny", *said]
    assert with_stored_overrides(["seed=4"]) == ["seed=4"]
    assert with_stored_overrides(["run_dir=/none"]) == ["run_dir=/none"]


def program(*arguments, name="train"):
    return subprocess.run(
        [sys.executable, "-m", f"vidtrain.{name}", *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("name", ["train", "evaluate", "audit", "prepare", "split"])
def test_help_says_what_can_be_chosen_without_importing_torch(name):
    code = (
        f"import sys; sys.argv[1:] = ['--help']; import vidtrain.{name} as program; program.main()\n"
        "assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert f"python -m vidtrain.{name}" in found.stdout
    if name != "split":
        assert re.search(r"dataset: class_folders, .*motion", found.stdout)


def test_cfg_job_resolves():
    found = program("--cfg", "job", "--resolve", "optimizer=sgd")
    assert found.returncode == 0
    assert "_target_: torch.optim.SGD" in found.stdout and "${" not in found.stdout


def test_a_users_mistake_ends_with_status_2_and_no_traceback():
    found = program("trainer.epohcs=3", "dataset=nothing")
    assert found.returncode == 2
    assert found.stderr.startswith("error: 2 faults in the configuration; nothing was started\n")
    assert "Traceback" not in found.stderr + found.stdout


def test_evaluate_says_that_it_needs_a_checkpoint():
    found = program(name="evaluate")
    assert found.returncode == 2
    assert "checkpoint: must be given: checkpoint=RUN/checkpoints/best.pt" in found.stderr
    assert "Traceback" not in found.stderr
