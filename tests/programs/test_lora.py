"""Adapters end to end: checkpoints that hold them and name their base, and every program that opens one."""

import csv
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from composing import config_of
from fork_server import run_program
from safetensors.torch import load_file
from small_run import small

from vidtrain.app import check
from vidtrain.benchmark import benchmark
from vidtrain.build.checkpoint_loader import open_trained
from vidtrain.compare import compare
from vidtrain.config.renames import migrate
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.export import export
from vidtrain.models.lora import adapter_parameters
from vidtrain.models.weights.files import content_hash, stamp
from vidtrain.predict import predict
from vidtrain.train import train
from vidtrain.training import checkpoint, loop
from vidtrain.training.distributed import Ranks

BASE = small("logger=none", "trainer.epochs=1", "trainer.batch_size=4", "optimizer.lr=1e-2", depth=2)
LORA = [*BASE, "stage=lora", "stage.lora.lora.rank=4", "trainer.epochs=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A run that trained everything, and one that trained adapters of it; `base` is the file between them."""
    folder = tmp_path_factory.mktemp("runs")
    train(config_of("train", *BASE, f"data_root={data}", f"run_dir={folder}/full"))
    base = folder / "base.pt"
    shutil.copy(folder / "full/checkpoints/best.pt", base)
    train(config_of("train", *LORA, f"data_root={data}", f"run_dir={folder}/lora", f"pretrained={base}"))
    return SimpleNamespace(base=base, lora=folder / "lora", best=folder / "lora/checkpoints/best.pt")


@pytest.fixture
def lent(runs):
    """The same, of which a test may take the base away."""
    kept = runs.base.with_name("kept.pt")
    shutil.copy(runs.base, kept)
    yield runs
    shutil.move(kept, runs.base)


def rebuilt(path, merged=False):
    """The model of a checkpoint, as programs open it."""
    opened = open_trained(path, trust_targets=False)
    return opened.model(migrate(opened.config, str(path)), Ranks(torch.device("cpu")), merged).eval()


def a_clip():
    return torch.randn(2, 1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "previous.pt"])
def test_a_checkpoint_holds_what_trains_and_names_the_base(runs, name):
    payload, whole = checkpoint.load(runs.best.with_name(name)), checkpoint.load(runs.base)["model"]
    adapters = [key for key in payload["model"] if "lora_" in key]
    head = [key for key in whole if key.startswith("head.")]
    assert payload["model"].keys() == {*adapters, *head} and len(adapters) == 2 * 4 * 2
    assert payload["lora"] == {"rank": 4, "alpha": 16.0, "dropout": 0.0, "targets": None}
    [file] = payload["base"]["files"]
    assert file == {
        "source": str(runs.base),
        "path": str(runs.base),
        "sha256": content_hash(runs.base),
        "stamp": stamp(runs.base),
    }
    assert set(payload["base"]["tensors"]) == {key for key in whole if key.startswith("encoder.")}
    assert runs.best.stat().st_size < 0.7 * runs.base.stat().st_size
    assert "optimizer" not in payload or len(payload["optimizer"]["state"] if payload["optimizer"] else []) in (
        0,
        len(adapters) + len(head),
    )


def test_the_model_is_the_base_with_the_adapters_and_merges_within_1e_5(runs):
    model, whole = rebuilt(runs.best), checkpoint.load(runs.base)["model"]
    held, state = checkpoint.load(runs.best)["model"], model.state_dict()
    assert all(torch.equal(tensor, held[name] if name in held else whole[name]) for name, tensor in state.items())
    assert any(parameter.abs().sum() > 0 for parameter in adapter_parameters(model)[1::2])
    merged = rebuilt(runs.best, merged=True)
    assert merged.state_dict().keys() == whole.keys()
    with torch.no_grad():
        # measured: 6e-8, of logits up to 0.5
        torch.testing.assert_close(merged(a_clip()), model(a_clip()), atol=1e-5, rtol=0)


def test_evaluating_gives_the_numbers_of_the_run(runs, tmp_path):
    evaluate(config_of("evaluate", f"checkpoint={runs.lora}", f"out={tmp_path}/again", "num_workers=0"))
    of_run = json.loads((runs.lora / "eval/test/metrics.json").read_text())
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == of_run


def test_predictions_are_those_of_the_run(runs, tmp_path):
    with open(runs.lora / "eval/test/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (tmp_path / "test.txt").write_text("\n".join(row["path"] for row in rows))
    predict(
        config_of(
            "predict",
            f"checkpoint={runs.lora}",
            f"videos={tmp_path}/test.txt",
            f"out={tmp_path}/found.json",
            "num_workers=0",
        )
    )
    found = json.loads((tmp_path / "found.json").read_text())
    answers = {entry["path"]: entry["top"][0] for entry in found["videos"]}
    for row in rows:
        assert answers[row["path"]]["class"] == row["prediction"]
        assert answers[row["path"]]["probability"] == pytest.approx(float(row["p1"]), abs=1e-5)


@pytest.mark.slow
def test_an_export_is_the_merged_network(runs, tmp_path):
    export(
        config_of("export", f"checkpoint={runs.lora}", f"out={tmp_path}", "formats=[onnx,safetensors]", "card=false")
    )
    tensors = load_file(tmp_path / "model.safetensors")
    merged = rebuilt(runs.best, merged=True).state_dict()
    assert tensors.keys() == merged.keys()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in tensors.items())
    difference = json.loads((tmp_path / "card.json").read_text())["files"]["onnx"]["difference"]
    assert difference["absolute"] < 1e-5
    with torch.no_grad():
        adapted = rebuilt(runs.best)(a_clip())
        exported = rebuilt(tmp_path / "model.safetensors")(a_clip())
    torch.testing.assert_close(exported, adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", ["init_from", "pretrained"])
def test_another_run_starts_from_the_merged_network(runs, data, tmp_path, key):
    start = [f"{key}={runs.lora}", "optimizer.lr=0", "optimizer.weight_decay=0", "trainer.epochs=1"]
    train(config_of("train", *BASE, *start, f"data_root={data}", f"run_dir={tmp_path}/next"))
    state = checkpoint.load(tmp_path / "next/checkpoints/last.pt")["model"]
    merged = rebuilt(runs.best, merged=True).state_dict()
    assert state.keys() == merged.keys() and all(torch.equal(state[name], merged[name]) for name in merged)
    report = json.loads((tmp_path / "next/starting_point.json").read_text())["sources"][0]
    assert report["match"] == 1.0 and len(report["changed"]) == 8


def test_adapters_of_a_network_with_adapters(runs, data, tmp_path):
    """The base is then the checkpoint that names the base before it."""
    train(config_of("train", *LORA, f"data_root={data}", f"run_dir={tmp_path}/second", f"init_from={runs.lora}"))
    path = tmp_path / "second/checkpoints/best.pt"
    payload = checkpoint.load(path)
    assert [file["path"] for file in payload["base"]["files"]] == [str(runs.best)]
    state, merged = rebuilt(path).state_dict(), rebuilt(runs.best, merged=True).state_dict()
    assert all(torch.equal(state[name], merged[name]) for name in payload["base"]["tensors"])


def test_runs_are_compared(runs, tmp_path):
    compare(config_of("compare", f"runs=[{runs.lora},{runs.lora.parent}/full]", f"out={tmp_path}", "bootstrap=100"))
    assert any(tmp_path.iterdir())


@pytest.mark.slow
def test_interrupted_and_resumed_it_is_the_same_bits(runs, data, tmp_path, monkeypatch):
    options = [
        *LORA,
        "trainer.ema=0.9",
        "trainer.save_every=2it",
        "trainer.accumulation=2",
        f"pretrained={runs.base}",
    ]
    train(config_of("train", *options, f"data_root={data}", f"run_dir={tmp_path}/alone"))
    steps, checked = [], loop.check_faults

    def interrupt(*arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        checked(*arguments)

    killed = config_of("train", *options, f"data_root={data}", f"run_dir={tmp_path}/killed")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "check_faults", interrupt)
        train(killed)
    train(killed)
    for file in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(tmp_path / run / "checkpoints" / file) for run in ("alone", "killed"))
        for part in ("model", "ema") if file == "last.pt" else ("model",):
            assert one[part].keys() == other[part].keys()
            assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
        assert one["base"] == other["base"] and one["base"] is not None


def test_a_base_that_is_not_there_or_another_is_named_with_its_hash(lent, data, tmp_path):
    sha256 = content_hash(lent.base)
    again = config_of("evaluate", f"checkpoint={lent.lora}", f"out={tmp_path}/again", "num_workers=0")
    beside = lent.best.with_name(lent.base.name)
    shutil.move(lent.base, beside)
    rebuilt(lent.best)  # it may lie beside the checkpoint
    beside.unlink()
    for opening in (
        lambda: evaluate(again),
        lambda: rebuilt(lent.best),
        lambda: train(
            config_of("train", *BASE, f"init_from={lent.lora}", f"data_root={data}", f"run_dir={tmp_path}/x")
        ),
    ):
        with pytest.raises(UserError, match=rf"{lent.base} does not exist.*has sha256 {sha256}"):
            opening()
    checkpoint.save(checkpoint.load(lent.base.with_name("kept.pt")) | {"changed": 1}, lent.base)
    other = content_hash(lent.base)
    with pytest.raises(UserError, match=rf"{lent.base} has changed: its sha256 is {other}.*{sha256}"):
        rebuilt(lent.best)
    [(key, why)] = check.check_run(config_of("train", *BASE, f"init_from={lent.lora}"))
    assert key == "init_from" and other in why and sha256 in why


def test_a_base_is_hashed_again_only_where_it_was_written_anew(lent, monkeypatch):
    hashed = []

    def counting(path):
        hashed.append(path)
        return content_hash(path)

    monkeypatch.setattr("vidtrain.models.weights.loading.content_hash", counting)
    then = int(checkpoint.load(lent.best)["base"]["files"][0]["stamp"].split()[-1])
    os.utime(lent.base, ns=(then, then))
    rebuilt(lent.best)
    assert hashed == []
    os.utime(lent.base)  # the same bytes, of another time
    rebuilt(lent.best)
    assert hashed == [lent.base]


@pytest.mark.parametrize(
    "change",
    [
        {"lora": {"rank": 0, "alpha": 1.0, "dropout": 0.0, "targets": None}},
        {"lora": "yes"},
        {"base": {"files": [{"path": "x"}], "tensors": []}},
        {"base": {"files": 3, "tensors": []}},
    ],
)
def test_a_checkpoint_whose_adapters_are_none(runs, tmp_path, change):
    path = tmp_path / "bad.pt"
    checkpoint.save(checkpoint.load(runs.best) | change, path)
    with pytest.raises(UserError, match=f"{path} is damaged, or was changed: its entries for adapters"):
        rebuilt(path)


def test_a_base_that_lacks_what_it_should_hold(runs, tmp_path):
    payload = checkpoint.load(runs.best)
    payload["base"]["tensors"] = [*payload["base"]["tensors"], "encoder.more.weight"]
    checkpoint.save(payload, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="has no tensor that fits the model's encoder.more.weight"):
        rebuilt(tmp_path / "bad.pt")


def test_without_weights_from_a_file_a_checkpoint_holds_all(data, tmp_path):
    train(config_of("train", *LORA, "trainer.epochs=1", f"data_root={data}", f"run_dir={tmp_path}/run"))
    payload = checkpoint.load(tmp_path / "run/checkpoints/best.pt")
    assert payload["base"] is None and "encoder.blocks.0.attn.qkv.weight" in payload["model"]
    evaluate(config_of("evaluate", f"checkpoint={tmp_path}/run", f"out={tmp_path}/again", "num_workers=0"))
    of_run = json.loads((tmp_path / "run/eval/test/metrics.json").read_text())
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == of_run


def test_a_later_phase_may_train_everything(runs, data, tmp_path):
    """Then nothing stays as the file has it, so checkpoints hold all from the start."""
    more = [
        "+stage/phase@stage.full=full",
        "stage.full.duration=50%",
        "stage.lora.duration=50%",
        f"pretrained={runs.base}",
    ]
    train(config_of("train", *LORA, *more, f"data_root={data}", f"run_dir={tmp_path}/run"))
    payload, whole = (checkpoint.load(each) for each in (tmp_path / "run/checkpoints/last.pt", runs.base))
    assert payload["base"] is None
    name = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(payload["model"][name], whole["model"][name])
    assert payload["model"]["encoder.blocks.0.attn.qkv.lora_B"].any()


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["stage.lora.lora.rank=25"], "stage.lora.lora.rank=25 is above the width 24 of blocks.0.attn.qkv"),
        (["stage.lora.lora.alpha=inf"], "stage.lora.lora.alpha=inf must be above 0"),
        (["stage.lora.lora.targets=[qkv]"], "stage.lora.lora.targets=['qkv']: no linear layer of ViT3D"),
        (["stage.lora.encoder_blocks=null"], "stage.lora.lora trains adapters of layers that are frozen"),
        (["stage.lora.cache_features=true"], "stage.lora.cache_features needs a frozen encoder"),
        (["model=r3d_18"], "stage.lora.lora: TorchvisionResNet has no linear layers"),
    ],
)
def test_what_does_not_go_together_shows_before_the_start(overrides, why):
    base = [each for each in LORA if not each.startswith(("model.", "clip."))] if "model=r3d_18" in overrides else LORA
    [(key, said)] = check.check_run(config_of("train", *base, *overrides))
    assert key == "stage" and why in said


def test_every_number_that_is_out_of_range_is_answered_with_its_key():
    bad = {"rank": 0, "alpha": -1, "dropout": 1}
    faults = check.check_run(config_of("train", *LORA, *(f"stage.lora.lora.{k}={v}" for k, v in bad.items())))
    assert faults == [
        ("stage.lora.lora.rank", "0 must be 1 or more"),
        ("stage.lora.lora.alpha", "-1.0 must be above 0"),
        ("stage.lora.lora.dropout", "1.0 must be 0 or more, and below 1"),
    ]


@pytest.mark.slow
def test_its_steps_are_measured(data, tmp_path):
    """Adapters and the head train. The base gets no gradients, which are a third of the arithmetic of a full step."""
    options = ["steps=2", "warmup=0", f"data_root={data}", f"out={tmp_path}"]
    assert benchmark(config_of("benchmark", *LORA, *options)) > 0
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert 0 < found["parameters"]["trained"] < found["parameters"]["total"]
    assert 1 < found["flops"]["training_per_clip"] / found["flops"]["forward_per_clip"] < 3


@pytest.mark.slow
def test_two_ranks_equal_one(runs, tmp_path):
    for processes in (1, 2):
        folders = [f"run_dir={tmp_path / str(processes)}", f"data_root={tmp_path}", f"pretrained={runs.base}"]
        ended = run_program("train", *LORA, *folders, "optimizer=sgd", "optimizer.lr=1e-2", ranks=processes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = (checkpoint.load(tmp_path / run / "checkpoints/last.pt") for run in "12")
    assert one["base"] == two["base"]
    for name, tensor in one["model"].items():
        torch.testing.assert_close(tensor, two["model"][name], atol=1e-4, rtol=0)
