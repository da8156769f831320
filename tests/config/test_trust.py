"""What a checkpoint, a card or a configuration from elsewhere may name: each entrance with payloads that would leave a
file if they ran."""

import copy
import json
import sys

import pytest
import torch
import yaml
from composing import config_of
from omegaconf import OmegaConf
from safetensors.torch import save_file

from vidtrain.build import parts as build
from vidtrain.build.checkpoint_loader import open_trained
from vidtrain.build.parts import check_starting_point
from vidtrain.config.references import put_published
from vidtrain.config.targets import CONF
from vidtrain.config.trust import as_text, check_trust, is_computed, is_trusted, shipped, with_references
from vidtrain.errors import UserError
from vidtrain.evaluate import evaluate
from vidtrain.export import export
from vidtrain.models.exporting import INPUT_NAME, OUTPUT_NAMES
from vidtrain.models.weights import CARD_FORMAT, CARD_KEY
from vidtrain.predict import predict
from vidtrain.runs.folder import check_unchanged, stored_settings
from vidtrain.training import checkpoint

TRUSTED = [
    "vidtrain.models.vit3d.ViT3D",
    "vidtrain.data.sources.listings.Part",
    "vidtrain.training.optimizers.timm_optimizer",  # a function
    "torch.nn.LayerNorm",
    "torch.nn.modules.normalization.LayerNorm",
    "torch.optim.RMSprop",
    "torch.optim.rmsprop.RMSprop",
    "timm.optim.Lion",
    "timm.optim.lion.Lion",
]
STRANGE = [
    "torch.nn.functional.torch.hub.load",  # names lead through modules
    "torch.nn.modules.linear.math.sqrt",
    "torch.nn.modules.linear.Module",  # a class that only is imported there
    "torch.nn.functional.linear",
    "torch.nn.Module.load_state_dict",
    "torch.nn.Linear.__class__",
    "torch.nn.DataParallel",
    "torch.optim.lr_scheduler.LambdaLR",
    "torch.optim.swa_utils.AveragedModel",
    "torch.nn.utils.parametrize.torch.load",
    "timm.create_model",
    "timm.optim.create_optimizer_v2",
    "timm.optim.lion.torch.hub.load",
    "torchvision.models.get_model",
    "vidtrain.build.parts.torch.hub.load",
    "vidtrain.build.parts.instantiate",
    "vidtrain.files.torch_files.torch.load",
    "vidtrain.files.atomic.write_text_atomic",
    "vidtrain.files.folders.RunLock",  # a class of ours that makes a file
    "vidtrain.models.exporting.OnnxClassifier",  # and one that opens one
    "vidtrain.sweeps.submitit_launchers.LocalLauncher",
    "vidtrain.models.vit3d.ViT3D.forward",
    "hydra.utils.get_method",
    "functools.partial",
    "builtins.exec",
    "os.mkdir",
    "torch.nnother.Thing",
    "torch.nn.",
    "${model}",
    "",
    None,
    7,
    ["os.mkdir"],
]


@pytest.mark.parametrize("target", TRUSTED)
def test_parts_of_conf_and_layers_and_optimizers_may_be_named(target):
    assert is_trusted(target)


@pytest.mark.parametrize("target", STRANGE, ids=str)
def test_nothing_else_may_be(target):
    assert not is_trusted(target)


def test_what_conf_ships_is_all_that_it_names():
    def named(node):
        if isinstance(node, dict):
            yield from [node["_target_"]] if "_target_" in node else []
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            yield from named(each)

    files = [path for path in CONF.rglob("*.yaml") if "hydra" not in path.relative_to(CONF).parts]
    names = {name for path in files for name in named(yaml.safe_load(path.read_text()))}
    assert shipped() == names - {"???"}  # a network that the user names
    assert "vidtrain.sweeps.submitit_launchers.SlurmLauncher" not in shipped()
    for name in shipped():  # each says itself that it lives there
        if name.startswith("vidtrain."):
            found = build.instantiate_component(OmegaConf.create({"_target_": "hydra.utils.get_object", "path": name}))
            assert f"{found.__module__}.{found.__qualname__}" == name


def test_nothing_is_imported_because_a_name_asks_for_it(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil.Thing", "torch.nn.evil.Thing", "torch.optim.evil.Thing"):
        assert not is_trusted(name)
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


# --- every place of a configuration, by every entrance -----------------------------------------------------


@pytest.fixture(scope="module")
def config():
    """As a checkpoint has it."""
    cfg = config_of("train")
    put_published(cfg)
    return OmegaConf.to_container(cfg)


def payloads(folder):
    """Parts that leave a file in `folder` when they are built."""
    folder.mkdir(exist_ok=True)
    (folder / "hubconf.py").write_text(f"def entry():\n    open({str(folder / 'ran')!r}, 'w').close()\n")
    hub = {"repo_or_dir": str(folder), "model": "entry", "source": "local"}
    return {
        "hub": {"_target_": "torch.nn.functional.torch.hub.load", **hub},
        "our hub": {"_target_": "vidtrain.build.parts.torch.hub.load", **hub},
        "write": {
            "_target_": "vidtrain.files.atomic.write_text_atomic",
            "path": {"_target_": "pathlib.Path", "_args_": [str(folder / "ran")]},
            "text": "x",
        },
        "mkdir": {"_target_": "os.mkdir", "_args_": [str(folder / "ran")]},
    }


def test_the_payloads_run_where_they_are_built(tmp_path):
    for name, payload in payloads(tmp_path).items():
        build.instantiate_component(OmegaConf.create(payload))
        ran = tmp_path / "ran"
        assert ran.exists(), name
        ran.rmdir() if ran.is_dir() else ran.unlink()


PLACES = {
    "loss": lambda config, payload: config.update(loss=payload),
    "argument": lambda config, payload: config["model"]["encoder"].update(depth=payload),
    "in a list": lambda config, payload: config["dataset"]["source"].update(parts=[[1, {"a": payload}]]),
    "positional": lambda config, payload: config["augmentation"]["eval"].update(_args_=[payload]),
    "of the logger": lambda config, payload: config.update(logger={"mine": payload}),
    "beside": lambda config, payload: config["dataset"].update(anything={"deep": {"er": payload}}),
}


def poisoned(config, place, payload):
    changed = copy.deepcopy(config)
    PLACES[place](changed, payload)
    return changed


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["hub", "our hub", "write", "mkdir"])
def test_a_checkpoint_is_refused_wherever_it_names_code(place, name, config, tmp_path):
    payload = payloads(tmp_path)[name]
    held = {"model": {}, "classes": ["a", "b"], "config": poisoned(config, place, payload)}
    checkpoint.save(held, tmp_path / "checkpoints/bad.pt")
    path = f"checkpoint={tmp_path}/checkpoints/bad.pt"
    (tmp_path / "clip.mp4").touch()
    for run in (
        lambda: evaluate(config_of("evaluate", path, f"out={tmp_path}/out")),
        lambda: predict(config_of("predict", path, f"videos={tmp_path}/clip.mp4")),
        lambda: export(config_of("export", path, "formats=[safetensors]", f"out={tmp_path}/out")),
    ):
        with pytest.raises(UserError) as error:
            run()
        assert payload["_target_"] in str(error.value)
        assert str(error.value).endswith("If you trust it and have them installed, set trust_targets=true")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["loss", "argument"])
def test_a_card_in_an_exported_file_is_held_to_the_same(place, config, tmp_path):
    card = {"format": CARD_FORMAT, "classes": ["a", "b"]}
    card["config"] = poisoned(config, place, payloads(tmp_path)["hub"])
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {CARD_KEY: json.dumps(card)})
    with pytest.raises(UserError, match="torch.nn.functional.torch.hub.load"):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/bad.safetensors", f"out={tmp_path}/out"))
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    clips, *outputs = [
        helper.make_tensor_value_info(name, floats, [1, 1, 3, 4, 16, 16]) for name in (INPUT_NAME, *OUTPUT_NAMES)
    ]
    nodes = [helper.make_node("Identity", [INPUT_NAME], [each.name]) for each in outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [clips], outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {CARD_KEY: json.dumps(card)})
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(UserError, match="torch.nn.functional.torch.hub.load"):
        evaluate(config_of("evaluate", f"checkpoint={tmp_path}/bad.onnx", f"out={tmp_path}/out"))
    assert not (tmp_path / "ran").exists()


def test_weights_to_start_from_are_not_asked_for_code(config, tmp_path):
    held = {"model": {}, "classes": ["a"], "config": poisoned(config, "loss", payloads(tmp_path)["hub"])}
    checkpoint.save(held, tmp_path / "run/checkpoints/best.pt")
    cfg = config_of("train", f"init_from={tmp_path}/run")
    with pytest.raises(UserError, match="holds no tensors"):
        check_starting_point(cfg, None)
        check_starting_point(cfg, torch.nn.Linear(1, 1))
    assert not (tmp_path / "ran").exists()


def test_what_is_no_plain_configuration_is_refused(config, tmp_path):
    import argparse

    deep: dict = {}
    deep["again"] = deep
    for strange, said in (
        ({**config, "loss": argparse.Namespace(a=1)}, "loss: a Namespace, which is not a plain value"),
        ({**config, b"loss": 1}, "the key b'loss'"),
        ({**config, "loss": deep}, "nested deeper than 40"),
        ({**config, "loss": [[0] * 400] * 400}, "more than 100000 settings"),
    ):
        with pytest.raises(UserError, match=said):
            check_trust(strange, "bad.pt")
    checkpoint.save({"model": {}, "classes": ["a"], "config": ["x"]}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="holds a list in place"):
        open_trained(tmp_path / "bad.pt", trust_targets=False)


def test_a_name_that_is_put_together_is_refused(config):
    for target in ("${name}", "torch.${name}", "${oc.env:HOME}", "${..name}"):
        with pytest.raises(UserError, match="loss: "):
            check_trust({**config, "loss": {"_target_": target}}, "bad.pt")


def test_a_run_of_ones_own_package_is_used_when_that_is_said(config, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from vidtrain.training.losses import CrossEntropy\n\n\nclass Mine(CrossEntropy):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = {**config, "loss": {**config["loss"], "_target_": "my_losses.Mine"}}
    checkpoint.save({"model": {}, "classes": ["a"], "config": mine}, tmp_path / "mine.pt")
    with pytest.raises(UserError, match=r"loss: my_losses.Mine(.|\n)*trust_targets"):
        open_trained(tmp_path / "mine.pt", trust_targets=False)
    assert "my_losses" not in sys.modules
    opened = open_trained(tmp_path / "mine.pt", trust_targets=True)
    assert type(build.instantiate_component(OmegaConf.create(opened.config).loss)).__name__ == "Mine"


# --- the environment of whoever reads it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "computed"),
    [
        ("${data_root}/${dataset.name}", False),
        ("${a[0].b-c}", False),
        ("${..size}", False),
        ("costs $5 {or less}", False),
        ("${oc.env:X}", True),
        ("x ${ oc.env : X } y", True),
        ("\\${oc.env:X}", True),  # which building a part would look up in its second turn
        ("${oc.create:{_target_:os.mkdir}}", True),
        ("${oc.decode:${a}}", True),
        ("${${a}:X}", True),
        ("${a.${b}}", True),
        ("${a}{oc.env:X}", True),  # where a is $
        ("$${a}", True),
        ("${a}${b}", True),
        ("${..a}{oc.env:X}", True),
        ("${now:%Y}", True),
        ("${oc.env:X", True),
    ],
)
def test_only_references_to_other_settings_are_followed(text, computed):
    assert is_computed(text) == computed


def test_what_would_be_looked_up_stays_text(config, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    stored = copy.deepcopy(config)
    stored["logger"] = {"a": ["http://u:${oc.env:SECRET}@host"]}
    stored["trainer"]["num_workers"] = "${oc.env:SECRET}"  # where the schema takes a number
    stored["clip"]["size"] = "${oc.env:SECRET}"  # and where it takes anything
    kept, computed = as_text(stored)
    assert computed == {
        "logger.a[0]": "http://u:${oc.env:SECRET}@host",
        "trainer.num_workers": "${oc.env:SECRET}",
        "clip.size": "${oc.env:SECRET}",
    }
    assert "num_workers" not in kept["trainer"]
    resolved = OmegaConf.to_container(OmegaConf.create(kept), resolve=True)
    again = OmegaConf.to_container(OmegaConf.create(resolved), resolve=True)
    assert "hunter2" not in str(again)
    assert with_references(resolved["logger"]) == stored["logger"]
    assert kept["model"]["encoder"]["image_size"] == "${clip.size}"


@pytest.mark.parametrize("program", ["evaluate", "predict", "export"])
def test_a_checkpoint_that_reads_the_environment_is_refused_where_that_counts(program, config, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    stored = copy.deepcopy(config)
    stored["loss"]["label_smoothing"] = "${oc.env:SECRET}"
    stored["data_root"] = "${oc.env:SECRET}"
    stored["logger"] = {"mine": {"_target_": "vidtrain.tracking.trackers.WandbLogger", "a": "${oc.env:SECRET}"}}
    checkpoint.save({"model": {}, "classes": ["a", "b"], "config": stored}, tmp_path / "checkpoints/bad.pt")
    (tmp_path / "clip.mp4").touch()
    more = {"predict": [f"videos={tmp_path}/clip.mp4"], "export": ["formats=[safetensors]"], "evaluate": []}
    run = {"evaluate": evaluate, "predict": predict, "export": export}[program]
    with pytest.raises(UserError) as error:
        run(config_of(program, f"checkpoint={tmp_path}/checkpoints/bad.pt", f"out={tmp_path}/out", *more[program]))
    lines = str(error.value).splitlines()
    assert "  loss.label_smoothing: ${oc.env:SECRET}" in lines
    assert ("  data_root: ${oc.env:SECRET}; set data_root=" in lines) == (program == "evaluate")
    assert lines[-1] == "If you trust the file, set trust_targets=true"
    assert "hunter2" not in str(error.value)


# --- a run's folder ----------------------------------------------------------------------------------------


def test_the_settings_of_a_run_do_not_read_the_environment(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    stored = copy.deepcopy(config)
    stored["name"] = "${oc.env:SECRET}"
    stored["seed"] = "${oc.decode:${oc.env:SECRET}}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    found = stored_settings(tmp_path)
    assert (found["name"], found["seed"]) == ("${oc.env:SECRET}", "${oc.decode:${oc.env:SECRET}}")
    assert "hunter2" not in str(found)
    stored["trainer"] = "${oc.create:{batch_size:3}}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(UserError, match="config.yaml is from another version"):
        stored_settings(tmp_path)


def test_resuming_imports_nothing_that_the_folder_names(config, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    stored = {**config, "loss": {"_target_": "evil.Loss"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(UserError, match=r"loss._target_: evil.Loss -> vidtrain"):
        check_unchanged(tmp_path, config_of("train"), "differs")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.mkdir [" + str(tmp_path / "ran") + "]")
    with pytest.raises(UserError, match=r"config.yaml cannot be read"):
        stored_settings(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_run_with_references_to_the_environment_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME", "7")
    cfg = config_of("train", "seed=${oc.env:SOME}")
    put_published(cfg)
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    check_unchanged(tmp_path, cfg, "differs")  # as it was written
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    check_unchanged(tmp_path, cfg, "differs")  # and as earlier versions wrote it
    with pytest.raises(UserError, match=r"seed: 7 -> 8"):
        check_unchanged(tmp_path, config_of("train", "seed=8"), "differs")
