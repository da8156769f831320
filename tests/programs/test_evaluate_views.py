"""The evaluation program's view table: one pass for every protocol, over any ranks and across kills."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest
from composing import config_of
from fork_server import run_program, start_ranks
from omegaconf import OmegaConf
from small_run import small

from vidtrain.build import parts as build
from vidtrain.config.targets import CONF
from vidtrain.data.loading import dataset as dataset_module
from vidtrain.errors import UserError
from vidtrain.evaluate import check, evaluate
from vidtrain.evaluation.view_store import UNITS, open_views, units_done
from vidtrain.reports import plots
from vidtrain.train import train

SMALL = small(
    "logger=none",
    "optimizer.lr=0.01",
    "trainer.epochs=4",
    "trainer.batch_size=10",
    "trainer.ema=0.5",
    "trainer.monitor_weights=raw",
    test=2,
    frames=40,
)
VIEWS = ["eval_clips=3", "crops=3", "frame_order_ablations=[shuffled,reversed,single_frame]", "batch_size=3"]
FINAL = ("views.json", "logits.npy", "labels.npy", "frames.npy", "videos.csv")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run, and its table with 3 clips x 3 crops in all four orders, in `root/table`."""
    root = tmp_path_factory.mktemp("views")
    train(config_of("train", *SMALL, f"run_dir={root}/run", f"data_root={root}/data"))
    evaluate(config_of("evaluate", f"checkpoint={root}/run", *VIEWS, f"out={root}/table"))
    return root


@pytest.fixture
def run(root, monkeypatch):
    """Evaluates with more overrides; the curve of the views is drawn in `root` alone, as that takes long."""
    monkeypatch.setattr(plots, "save_png", lambda figure, path: path.touch())

    def call(*overrides):
        cfg = config_of("evaluate", f"checkpoint={root}/run", *overrides)
        assert check(cfg) == []
        return evaluate(cfg)

    return call


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {name: (folder / "views" / name).read_bytes() for name in FINAL}


@pytest.fixture
def closed(monkeypatch):
    """Neither a video nor a model can be opened."""

    def refuse(*arguments, **named):
        raise AssertionError("this was to be read from the table")

    monkeypatch.setattr(dataset_module, "decode_views", refuse)
    monkeypatch.setattr(build, "model", refuse)


@pytest.mark.slow
def test_what_it_leaves(root):
    names = {path.name for path in (root / "table").iterdir()}
    assert names == {"metrics.json", "predictions.csv", "logits.npz", "per_class.csv", "confusion.csv",
                     "protocols.csv", "probes.csv", "protocols.json", "views_curve.csv", "views_curve.png",
                     "views"}  # fmt: skip
    views = open_views(root / "table")
    assert views.logits.shape == (20, 4, 3, 3, 10)
    assert views.about["orders"] == ["forward", "shuffled", "reversed", "single_frame"]
    assert metrics(root / "table")["protocol"] == "8x3 frames at 16x16, 3 clips x 3 crops, mean_logits"
    assert metrics(root / "table")["coverage"] == "20/20"
    assert len(rows(root / "table/protocols.csv")) == 4 * 2 * 3 * 3
    [first, *_] = rows(root / "table/views/videos.csv")
    assert [first[f"clip{n}_{end}"] for n in (1, 2, 3) for end in ("first", "last")] == [
        "0", "21", "9", "30", "18", "39",
    ]  # fmt: skip


@pytest.mark.parametrize("order", ["forward", "shuffled", "reversed", "single_frame"])
def test_a_probe_is_what_evaluating_in_that_order_gives(root, run, tmp_path, order):
    run("eval_clips=3", "crops=3", "batch_size=3", f"frame_order={order}", f"out={tmp_path}")
    alone, table = open_views(tmp_path), open_views(root / "table")
    number = table.about["orders"].index(order)
    assert np.array_equal(alone.logits[:, 0], table.logits[:, number])


@pytest.mark.slow
def test_a_protocol_of_the_table_is_what_evaluating_with_it_gives(root, run, tmp_path, closed, monkeypatch):
    """Two clips, one crop: the first and the last start, the middle crop."""
    from_table = config_of(
        "evaluate",
        f"from_table={root}/table",
        "eval_clips=2",
        "crops=1",
        "fusion=mean_probs",
        f"out={tmp_path}/a",
    )
    assert check(from_table) == []
    evaluate(from_table)
    monkeypatch.undo()
    run("eval_clips=2", "crops=1", "fusion=mean_probs", f"out={tmp_path}/b")
    found, afresh = (metrics(tmp_path / each) for each in "ab")
    assert found["protocol"] == afresh["protocol"] == "8x3 frames at 16x16, 2 clips x 1 crop, mean_probs"
    assert found["metrics"] == pytest.approx(afresh["metrics"], abs=1e-5)
    [row] = [
        row
        for row in rows(root / "table/protocols.csv")
        if [row[key] for key in ("order", "clips", "crops", "fusion")] == ["forward", "2", "1", "mean_probs"]
    ]
    assert float(row["top1"]) == pytest.approx(afresh["metrics"]["top1"], abs=1e-6)
    assert float(row["clip_loss"]) == pytest.approx(afresh["metrics"]["clip_loss"], abs=1e-5)
    assert row["same_as_afresh"] == "1"


def test_the_same_command_again_reads_the_table(root, run, closed, capsys):
    before = contents(root / "table")
    run(*VIEWS, f"out={root}/table", "fusion=vote")
    assert "no video is read" in capsys.readouterr().out
    assert metrics(root / "table")["protocol"].endswith("3 clips x 3 crops, vote")
    assert contents(root / "table") == before


@pytest.mark.slow
def test_one_clip_of_an_even_number_is_said_to_be_part_of_them(run, tmp_path):
    run("eval_clips=2", f"out={tmp_path}/test_2x1")
    before = contents(tmp_path / "test_2x1")
    evaluate(config_of("evaluate", f"from_table={tmp_path}/test_2x1", "eval_clips=1"))
    assert contents(tmp_path / "test_2x1") == before  # its report stays
    found = metrics(tmp_path / "test_2x1_as_1x1")
    assert found["protocol"] == "8x3 frames at 16x16, 1 of 2 clips x 1 crop, mean_logits"
    evaluate(config_of("evaluate", f"from_table={tmp_path}/test_2x1", "fusion=vote"))
    assert metrics(tmp_path / "test_2x1_as_vote")["protocol"].endswith("2 clips x 1 crop, vote")


@pytest.mark.slow
def test_another_evaluation_is_kept_apart_or_replaced(root, run, tmp_path):
    shutil.copytree(root / "table", tmp_path / "out")
    other = ["eval_clips=2", "frame_order_ablations=[reversed]", "batch_size=3", f"out={tmp_path}/out"]
    with pytest.raises(UserError, match="holds the views of another evaluation") as error:
        run(*other)
    assert "clip.eval_clips: 3 -> 2" in str(error.value) and "augmentation.eval.crops: 3 -> 1" in str(error.value)
    with pytest.raises(UserError, match="checkpoint: "):
        evaluate(config_of("evaluate", f"checkpoint={root}/run/checkpoints/last.pt", *VIEWS, f"out={tmp_path}/out"))
    run(*other, "overwrite=true")
    assert open_views(tmp_path / "out").logits.shape == (20, 2, 2, 1, 10)


@pytest.mark.slow
def test_folders_have_the_name_of_what_they_hold(root, run):
    run("eval_clips=2", "fusion=vote")
    run("weights=raw", "split=val", "frame_order=reversed")
    last = f"checkpoint={root}/run/checkpoints/last.pt"
    evaluate(config_of("evaluate", last, "weights=ema"))
    names = {path.name for path in (root / "run/eval").iterdir()}
    assert names == {"test", "test_2x1", "val_1x1_reversed_raw", "test_1x1_last_ema"}
    evaluate(config_of("evaluate", last))
    raw, ema = (np.load(root / f"run/eval/test_1x1_last{each}/views/logits.npy") for each in ("", "_ema"))
    assert not np.array_equal(raw, ema)


def test_weights_that_a_checkpoint_does_not_hold(root, run):
    with pytest.raises(UserError, match=r"only the raw weights.*last.pt"):
        run("weights=ema", f"out={root}/none")


def test_where_the_model_attends_over_all_clips(run, tmp_path, capsys):
    run("eval_clips=2", "crops=3", "fusion=joint", "frame_order_ablations=[reversed]", f"out={tmp_path}")
    views = open_views(tmp_path)
    assert views.logits.shape == (20, 2, 1, 3, 10)
    assert "views cannot be taken apart" in " ".join(capsys.readouterr().out.split())
    whole = json.loads((tmp_path / "protocols.json").read_text())
    assert whole["joint"] and "cannot be taken apart by clips" in whole["notes"][0]
    assert {(row["clips"], row["crops"], row["fusion"]) for row in whole["protocols"]} == {
        (2, 1, "joint"),
        (2, 3, "joint"),
    }
    for asked, why in (
        ("eval_clips=1", "cannot be taken apart"),
        ("fusion=vote", "no logits of single clips"),
    ):
        with pytest.raises(UserError, match=why):
            evaluate(config_of("evaluate", f"from_table={tmp_path}", asked))


@pytest.mark.slow
def test_videos_that_are_too_short_are_named_before_anything_is_computed(root, tmp_path, closed):
    cfg = config_of("evaluate", f"checkpoint={root}/run", "short_video_policy=error", f"out={tmp_path}")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        # clips of 8 x 8 frames, of videos that have 40
        from vidtrain.app import view_tables as program

        before = program.as_trained

        def longer(*arguments):
            trained = before(*arguments)
            trained.clip.frame_step = 8
            return trained

        patched.setattr(program, "as_trained", longer)
        with pytest.raises(UserError) as error:
            evaluate(cfg)
    said = str(error.value)
    assert "short_video_policy=error, but 20 of 20 videos of test are too short for 8x8 frames at 16x16" in said
    assert "appear_000.mp4: the video is too short for a clip: it lasts 40, the clip's last frame is at 56" in said
    assert "and 10 more" in said and "short_video_policy=repeat_last" in said


def test_missing_videos_are_named_in_the_table(root, tmp_path):
    shutil.copytree(root / "data", tmp_path / "data")
    lost = tmp_path / "data/motion/test/grow/grow_001.mp4"
    lost.write_bytes(b"not a video")
    evaluate(config_of("evaluate", f"checkpoint={root}/run", f"data_root={tmp_path}/data", f"out={tmp_path}/out"))
    views = open_views(tmp_path / "out")
    assert [path for path, _ in views.missing] == [str(lost)]
    assert (views.about["coverage"], len(views.logits)) == ("19/20", 19)
    assert metrics(tmp_path / "out")["coverage"] == "19/20"


@pytest.mark.parametrize(
    ("overrides", "key", "why"),
    [
        ([], "checkpoint", "must be given"),
        (["from_table=x", "split=val", "weights=ema"], "weights", "from_table"),
        (["checkpoint=CONF", "fusion=votes"], "fusion", "did you mean vote"),
        (
            ["checkpoint=CONF", "frame_order_ablations=[reverse]"],
            "frame_order_ablations",
            "did you mean reversed",
        ),
        (["checkpoint=CONF", "frame_order_ablations=[reversed,reversed]"], "frame_order_ablations", "twice"),
        (["checkpoint=CONF", "weights=avg"], "weights", "known: raw, ema"),
        (["checkpoint=CONF", "eval_clips=0"], "eval_clips", "must be 1 or more"),
    ],
)
def test_faults_show_at_once(overrides, key, why):
    cfg = config_of("evaluate", *(each.replace("CONF", str(CONF / "evaluate.yaml")) for each in overrides))
    found = check(OmegaConf.masked_copy(cfg, list(cfg)))  # as the command line hands it over
    assert any(where == key and why in said for where, said in found), found


def options(root, out):
    return [f"checkpoint={root}/run", *VIEWS, f"out={out}"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_ranks_writes_the_same_table(root, tmp_path, processes):
    ended = run_program("evaluate", *options(root, tmp_path), ranks=processes)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert contents(tmp_path) == contents(root / "table")
    assert rows(tmp_path / "protocols.csv") == rows(root / "table/protocols.csv")


@pytest.mark.slow
def test_killed_it_goes_on_with_another_number_of_ranks(root, tmp_path):
    """Killed with SIGKILL after the second of seven batches, each of which takes long enough to be seen."""
    (child,) = start_ranks("evaluate", *options(root, tmp_path))
    units = tmp_path / "views" / UNITS
    assert child.until(lambda: len(units_seen(units)) >= 2), child.said
    child.kill()
    status, done = child.wait(), len(units_done(tmp_path / "views"))
    assert status == -signal.SIGKILL and 2 <= done < 7, "it was over before it could be killed"
    ended = run_program("evaluate", *options(root, tmp_path), ranks=2)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"continuing the table in {tmp_path}/views: {done} of 7 batches are in it" in ended.stdout
    assert contents(tmp_path) == contents(root / "table")


def units_seen(folder):
    from vidtrain.evaluation.view_store import _units_in

    return [unit for path in folder.glob("rank*.bin") for unit, _ in _units_in(path)]
