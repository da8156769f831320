"""Pretraining end to end: what a run without labels writes, how it resumes, and what starts from it."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from composing import config_of
from fork_server import run_program, server
from small_run import small

from vidtrain.app import check
from vidtrain.build import parts as build
from vidtrain.compare import compare
from vidtrain.embed import embed
from vidtrain.embeddings.store import Embeddings
from vidtrain.errors import DivergedError, UserError
from vidtrain.models.dense_joint_embedding import DenseJointEmbedding
from vidtrain.models.masked_models import MaskedModel, Predictor
from vidtrain.models.weights import files
from vidtrain.models.weights.format import OWN
from vidtrain.models.weights.loading import load_pretrained
from vidtrain.predict import predict
from vidtrain.runs.pretraining import CollapseWatch
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.run_log import read_metrics
from vidtrain.train import train
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks

BASE = small("logger=none", "trainer.epochs=2", "trainer.batch_size=4", "clip.size=32", depth=2)
PREDICTOR = [f"objective.predictor_{name}" for name in ("dim=24", "depth=1", "heads=4")]
DECODER = [f"objective.decoder_{name}" for name in ("dim=24", "depth=1", "heads=4")]
OBJECTIVES = {
    "videomae": ["objective=videomae", *DECODER],
    "vjepa": ["objective=vjepa", *PREDICTOR, "objective.momentum=0.9"],
    "vjepa2_1": [
        "objective=vjepa2_1",
        *PREDICTOR,
        "objective.momentum=0.9",
        "objective.levels=2",
        "objective.context_warmup=[2it,50%]",
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data, without_pictures):
    """A run of each objective, by name; that of vjepa is probed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in OBJECTIVES.items():
        probe = ["dataset@probe.dataset=motion", *probed()] if name == "vjepa" else []
        settings = [*BASE, *overrides, *probe, f"data_root={data}", f"run_dir={folder / name}"]
        train(config_of("train", *settings))
    return folder


def probed():
    """The motion dataset of `small` once more, to be probed."""
    return [text.replace("dataset.", "probe.dataset.") for text in BASE if text.startswith("+dataset.")]


def best(run):
    return checkpoint.load(run / "checkpoints/best.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_logs_the_untrained_network_and_closes_with_the_latest_weights(runs, name):
    rows, summary = read_metrics(runs / name), json.loads((runs / name / "summary.json").read_text())
    evaluations = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in evaluations] == [0, 5, 10]
    assert [row["val/evaluations"] for row in evaluations] == [1, 2, 3]
    assert all(1 < row["val/effective_rank"] <= 10 and 0 < row["val/spread"] < 1 for row in evaluations)
    # 20 videos of train are known, and the one of each class in val
    assert ("val/knn_top1" in evaluations[0]) == (name == "vjepa")
    assert summary["best_step"] == 10 and summary["loss"] == pytest.approx(evaluations[-1]["val/loss"])
    assert summary["status"] == "finished" and summary["pretraining"] in (
        "MaskedAutoencoder",
        "JointEmbedding",
        "DenseJointEmbedding",
    )
    train_losses = [row["train/loss"] for row in rows if "train/loss" in row]
    # that of vjepa2_1 rises while the weight of visible tokens grows
    assert len(train_losses) == 2 and (train_losses[1] < train_losses[0] or name == "vjepa2_1")


@pytest.mark.slow
def test_a_classifier_starts_from_the_teacher_or_by_name_from_the_encoder(runs, data, tmp_path):
    held, file = best(runs / "vjepa")["model"], runs / "vjepa/checkpoints/best.pt"
    cfg = config_of("train", *BASE)
    torch.manual_seed(1)
    for part, prefix in ((None, "teacher."), ("teacher", "teacher."), ("encoder", "encoder.")):
        model = build.model(cfg, 10, Ranks(torch.device("cpu")))
        report = load_pretrained(model, str(file), file, 1.0, part)
        for name, tensor in model.encoder.state_dict().items():
            assert torch.equal(tensor, held[prefix + name]), (part, name)
        assert report.match == 1
        assert any("of the teacher" in line for line in report.lines()) == (prefix == "teacher.")
    assert not torch.equal(held["teacher.blocks.0.mlp.fc1.weight"], held["encoder.blocks.0.mlp.fc1.weight"])
    with pytest.raises(UserError, match="has no teacher: remove init_part=teacher"):
        other = runs / "videomae/checkpoints/best.pt"
        load_pretrained(model, str(other), other, 1.0, "teacher")
    train(config_of("train", *BASE, f"data_root={data}", f"run_dir={tmp_path}", f"init_from={runs / 'vjepa'}"))
    record = json.loads((tmp_path / "starting_point.json").read_text())
    assert record["sources"][0]["match"] == 1 and all(name.startswith("head.") for name in record["initialized"])


@pytest.mark.slow
def test_a_classifier_and_pretraining_start_from_several_levels(runs):
    """Norms of levels are taken where the model has them."""
    held, file = best(runs / "vjepa2_1")["model"], runs / "vjepa2_1/checkpoints/best.pt"
    assert int(held["steps"]) == 10
    cpu = Ranks(torch.device("cpu"))
    levels = ["model.encoder.out_layers=[0,1]", "model.encoder.norm_per_layer=true"]
    for part, norms in (("teacher", "teacher_norms"), ("encoder", "head.norms")):
        model = build.model(config_of("train", *BASE), 10, cpu)
        report = load_pretrained(model, str(file), file, 1.0, part)
        assert report.match == 1 and report.unexpected == []
        assert torch.equal(model.encoder.state_dict()["norm.weight"], held[f"{part}.norm.weight"])
        deep = build.model(config_of("train", *BASE, *levels), 10, cpu)
        own = OWN.convert(replace(files.read(file, str(file)), part=part), deep).tensors
        assert torch.equal(own["encoder.norm.0.weight"], held[f"{norms}.0.weight"])
    cfg = config_of("train", *BASE, *OBJECTIVES["vjepa2_1"])
    model = build.trained_model(cfg, 1, cpu)
    assert isinstance(model, DenseJointEmbedding)
    report = load_pretrained(model, str(file), file, 1.0)
    assert set(report.loaded) == set(model.state_dict())
    model.begin(report.loaded)
    assert int(model.steps) == 0


@pytest.mark.slow
def test_pretraining_goes_on_from_pretraining_and_salt_takes_its_teacher(runs, data, tmp_path, monkeypatch):
    """From another run all three networks are taken; a teacher that stays keeps every bit."""
    file = runs / "vjepa/checkpoints/best.pt"
    cfg = config_of("train", *BASE, *OBJECTIVES["vjepa"])
    model = build.trained_model(cfg, 1, Ranks(torch.device("cpu")))
    assert isinstance(model, MaskedModel)
    report = load_pretrained(model, str(file), file, 1.0)
    assert set(report.loaded) == set(model.state_dict())
    teacher = runs / "videomae"
    salt = [*BASE, "objective=salt", *PREDICTOR, f"objective.teacher={teacher}", "trainer.epochs=1"]
    reads, read = [], files.read
    monkeypatch.setattr(files, "read", lambda path, source: reads.append(source) or read(path, source))
    cfg = config_of("train", *salt, f"data_root={data}", f"run_dir={tmp_path}")
    assert check.check_run(cfg) == []
    train(cfg)
    assert reads == [str(teacher / "checkpoints/best.pt")]  # once, for both
    before, after = best(teacher)["model"], best(tmp_path)["model"]
    names = [name.removeprefix("teacher.") for name in after if name.startswith("teacher.")]
    assert names and all(torch.equal(after[f"teacher.{name}"], before[f"encoder.{name}"]) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_killed_and_resumed_it_ends_with_the_same_bits(runs, data, tmp_path, name):
    settings = [
        *BASE,
        *OBJECTIVES[name],
        f"data_root={data}",
        f"run_dir={tmp_path}",
        "trainer.save_every=2it",
    ]
    child = server().start("train", *settings)
    assert child.until(lambda: (tmp_path / "checkpoints/previous.pt").exists()), child.said
    child.kill()
    assert child.wait() == -signal.SIGKILL and not (tmp_path / "summary.json").exists()
    ended = run_program("train", *settings)
    assert ended.returncode == 0, ended.stderr
    alone, resumed = best(runs / name), best(tmp_path)
    assert alone["model"].keys() == resumed["model"].keys()
    assert all(torch.equal(tensor, resumed["model"][key]) for key, tensor in alone["model"].items())
    rows = [[row["val/loss"] for row in read_metrics(run) if "val/loss" in row] for run in (runs / name, tmp_path)]
    assert rows[0] == rows[1] and len(rows[0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_do_what_one_does(runs, data, tmp_path, name):
    settings = [*BASE, *OBJECTIVES[name], f"data_root={data}", f"run_dir={tmp_path}"]
    ended = run_program("train", *settings, ranks=2)
    assert ended.returncode == 0, ended.stderr
    for key in ("train/loss", "val/loss", "val/effective_rank"):
        one, two = ([row[key] for row in read_metrics(run) if key in row] for run in (runs / name, tmp_path))
        assert two == pytest.approx(one, rel=2e-4), key


@pytest.mark.slow
def test_pretraining_answers_nothing_and_is_compared_by_what_all_runs_measured(runs, tmp_path):
    with pytest.raises(UserError, match="is of pretraining and has no classifier"):
        predict(config_of("predict", f"checkpoint={runs / 'vjepa'}", f"videos={tmp_path}"))
    both = f"runs=[{runs / 'vjepa'},{runs / 'videomae'}]"
    with pytest.raises(UserError, match="the runs do not share linear_top1 or knn_top1"):
        compare(config_of("compare", both, f"out={tmp_path}"))
    compare(config_of("compare", both, "metric=effective_rank", f"out={tmp_path}"))
    compared = json.loads((tmp_path / "summary.json").read_text())
    first, second = (json.loads((runs / name / "summary.json").read_text()) for name in ("vjepa", "videomae"))
    # only one was probed, so they were not measured alike
    assert compared["comparisons"] == []
    assert [recipe["mean"] for recipe in compared["recipes"]] == [first["effective_rank"], second["effective_rank"]]


@pytest.mark.slow
def test_pictures_at_every_evaluation_change_no_bit(runs, data, tmp_path):
    settings = [*BASE, *OBJECTIVES["videomae"], f"data_root={data}", f"run_dir={tmp_path}"]
    train(config_of("train", *settings, "probe.pictures=true"))
    names = {f"{name}_val_000{number}" for name in ("masked", "features") for number in (1, 2, 3)}
    assert names <= {path.stem for path in (tmp_path / "plots").glob("*.png")}
    with_pictures, without = best(tmp_path)["model"], best(runs / "videomae")["model"]
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_pictures.items())


@pytest.mark.slow
def test_a_page_has_what_was_measured_before_and_after(runs, tmp_path):
    """compare makes it again; in it, a run without pictures says what it measured and how to make it again."""
    for name in OBJECTIVES:
        compare(config_of("compare", f"runs={runs / name}", f"out={tmp_path}"))
        page = (tmp_path / "report.html").read_text()
        assert (runs / name / "report.html").is_file()  # that of the end of the run
        summary = json.loads((runs / name / "summary.json").read_text())
        assert f"pretrained by <b>{summary['pretraining']}</b>" in page
        for key in ("loss", "effective_rank", "spread", *(("linear_top1",) if name == "vjepa" else ())):
            assert f"{summary[key]:.4f}" in page
        for title in ("Effective rank", "Spread of features", "How to reproduce"):
            assert title in page
        assert ("Frozen features" in page) == (name == "vjepa") and "Against baselines" not in page


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["objective=videomae", "model=r3d_18"], "cannot leave out hidden tokens"),
        (["objective=videomae", "augmentation=strong_mixing"], "augmentation.mixing"),
        (["objective=videomae", "stage=head_grid"], "stage.head"),
        (["objective=videomae", "trainer.monitor=top1"], "trainer.monitor=top1"),
        (["objective=videomae", "trainer.monitor=knn_top1"], "trainer.monitor=knn_top1"),
        (["objective=videomae", "export.card=true"], "export"),
        (["objective=videomae", "debug=overfit"], "trainer.overfit_one_batch"),
        (["objective=videomae", "objective.masks.ratio=0.01"], "0.01 hides none"),
        (["objective=vjepa", "objective.masks.areas=[0.15,0.999]"], "leave no context"),
        (["objective=salt"], "objective.teacher"),
        (["objective=vjepa2_1", "model=r3d_18"], "cannot leave out hidden tokens"),
        (["objective=vjepa2_1", "model.encoder.depth=3"], "4, but model.encoder has 3 blocks"),
        (["objective=vjepa2_1", "objective.levels=2", "objective.context_warmup=[20%,10%]"], "the earlier first"),
        (["objective=vjepa2_1", "objective.levels=2", "objective.context_warmup=[5x,10%]"], "is not a duration"),
        (["dataset@probe.dataset=motion"], "probe.dataset is only for pretraining"),
        (["probe.pictures=true"], "probe.pictures is only for pretraining"),
    ],
)
def test_what_cannot_be_pretrained_is_said_before_the_start(overrides, words):
    faults = check.check_run(config_of("train", *overrides))
    assert any(words in f"{key}: {why}" for key, why in faults), faults


def test_a_collapse_is_noticed_in_the_attempt_that_follows_too():
    watch = CollapseWatch(NullConsole(), stops=True)
    watch.take_up([{"step": 0, "val/effective_rank": 5.0, "val/spread": 0.3, "val/evaluations": 1.0}])
    watch.look({"effective_rank": 2.0, "spread": 0.07})
    with pytest.raises(DivergedError, match=r"effective rank is 2.00 \(best 5.00\) and their spread 0.050 \(best"):
        watch.look({"effective_rank": 2.0, "spread": 0.05})


# (effective rank, spread) every 50 steps, of a small ViT on 128 videos of dataset=motion
FORCED = [(4.47, 0.274), (1.82, 0.034), (1.62, 0.03), (2.27, 0.114)]  # no predictor, momentum 0
SOUND = {
    "seed 0": [(4.47, 0.274), (3.1, 0.13), (2.49, 0.095), (2.72, 0.123), (3.1, 0.203)],
    "seed 1": [(4.57, 0.308), (3.52, 0.183), (3.29, 0.195), (3.74, 0.239), (3.46, 0.265)],
    "seed 2": [(4.29, 0.255), (2.99, 0.124), (2.44, 0.095), (2.82, 0.126), (3.32, 0.263)],
    "seed 3": [(4.19, 0.257), (3.25, 0.15), (2.52, 0.116), (3.14, 0.273), (3.29, 0.363)],
    "seed 4": [(4.31, 0.271), (3.39, 0.164), (2.59, 0.114), (3.14, 0.185), (4.48, 0.473)],
    "videomae": [(5.275, 0.2776), (2.135, 0.0671)],
}


def warnings_of(series):
    """How often a run would have been warned."""
    shown = []

    class Console(NullConsole):
        def warn(self, text):
            shown.append(text)

    watch = CollapseWatch(Console(), stops=False)
    for rank, spread in series:
        watch.look({"effective_rank": rank, "spread": spread})
    return len(shown)


def test_a_forced_collapse_is_warned_of_and_sound_runs_are_not():
    assert warnings_of(FORCED) == 2
    assert {name: warnings_of(series) for name, series in SOUND.items()} == dict.fromkeys(SOUND, 0)


@pytest.mark.slow
def test_a_predictor_of_another_number_of_heads_is_left_out(runs):
    """Its tensors would fit, and compute something else."""
    file = runs / "vjepa/checkpoints/best.pt"
    cfg = config_of("train", *BASE, *OBJECTIVES["vjepa"], "objective.predictor_heads=2")
    model = build.trained_model(cfg, 1, Ranks(torch.device("cpu")))
    assert isinstance(model, MaskedModel)
    report = load_pretrained(model, str(file), file, 1.0)
    assert set(report.loaded) == {name for name in model.state_dict() if not name.startswith("head.")}
    assert set(report.left_out.values()) == {"of objective.predictor_heads=4, and the model's has 2"}


@pytest.mark.slow
def test_a_teacher_from_elsewhere_builds_nothing_of_other_packages(runs, tmp_path):
    payload = best(runs / "videomae")
    payload["config"]["model"]["encoder"]["num_frames"] = {
        "_target_": "os.system",
        "command": f"touch {tmp_path}/ran",
    }
    torch.save(payload, tmp_path / "teacher.pt")
    salt = [*BASE, "objective=salt", *PREDICTOR, f"objective.teacher={tmp_path / 'teacher.pt'}"]
    with pytest.raises(UserError, match="os.system"):
        build.trained_model(config_of("train", *salt), 1, Ranks(torch.device("cpu")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_forced_collapse_ends_a_run_and_a_sound_run_goes_on(data, tmp_path, monkeypatch, without_pictures):
    """The encoder itself as the teacher, and no predictor: the mean of what is visible must tell what is hidden."""
    learning = [
        "objective=vjepa",
        *PREDICTOR,
        "trainer.epochs=16",
        "trainer.eval_every=4ep",
        "optimizer.lr=3e-3",
    ]
    settings = [
        *small("logger=none", "trainer.batch_size=16", "clip.size=32", train=8, val=2, depth=2),
        *learning,
        f"data_root={data / 'collapse'}",
        "trainer.stop_on_collapse=true",
    ]
    train(config_of("train", *settings, "objective.momentum=0.99", f"run_dir={tmp_path / 'sound'}"))
    summary = json.loads((tmp_path / "sound/summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == 80

    def mean_of_visible(self, tokens, masks, kind, grid):
        unused = 0 * sum(parameter.sum() for parameter in self.parameters())
        return tokens.mean(dim=1, keepdim=True).expand(-1, masks.hidden.shape[1], -1) + unused

    monkeypatch.setattr(Predictor, "forward", mean_of_visible)
    with pytest.raises(DivergedError, match="their effective rank is .*stop_on_collapse=true"):
        train(config_of("train", *settings, "objective.momentum=0", f"run_dir={tmp_path / 'forced'}"))
    assert json.loads((tmp_path / "forced/outcome.json").read_text())["status"] == "diverged"


@pytest.mark.slow
def test_embeddings_are_of_the_teacher_or_of_the_encoder(runs, tmp_path):
    vectors = {}
    for part in ("null", "teacher", "encoder"):
        out = tmp_path / part
        embed(config_of("embed", f"checkpoint={runs / 'vjepa'}", "num_workers=0", "splits=[val]", f"init_part={part}",
                        "map=none", "pictures=false", f"out={out}"))  # fmt: skip
        embeddings = Embeddings.open(str(out))
        vectors[part] = embeddings.vectors
    assert embeddings.encoder["learned_from"] is None and vectors["teacher"].shape == (10, 24)
    assert np.array_equal(vectors["null"], vectors["teacher"])
    assert np.abs(vectors["teacher"] - vectors["encoder"]).max() > 1e-4
    with pytest.raises(UserError, match="teacher"):
        embed(config_of("embed", f"checkpoint={runs / 'videomae'}", "num_workers=0", "init_part=teacher",
                        f"out={tmp_path / 'none'}"))  # fmt: skip
