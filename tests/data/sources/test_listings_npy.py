import numpy as np
import pytest

from vidtrain.data.manifest.manifest import Record
from vidtrain.data.sources.listings import NpyListing
from vidtrain.errors import UserError

# NumPy 1 has no such type
VARIABLE = np.array(["a", "b"], dtype=np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else None


@pytest.fixture
def save(tmp_path):
    def write(name, values):
        np.save(tmp_path / f"{name}.npy", values)
        return str(tmp_path / f"{name}.npy")

    return write


def test_paths_and_labels(save, tmp_path):
    source = NpyListing(
        train=save("train", np.array(["a.mp4", "/v/b.mp4"])),
        train_labels=save("train_labels", np.array([1, 0], dtype=np.uint8)),
        val=save("val", np.array([b"caf\xe9.mp4"])),
        val_labels=save("val_labels", np.array([1])),
    )
    found = source.manifests()
    assert found["train"].classes == found["val"].classes == ("0", "1")
    assert list(found["train"]) == [
        Record(f"{tmp_path}/a.mp4", 1, f"{tmp_path}/a.mp4"),
        Record("/v/b.mp4", 0, "/v/b.mp4"),
    ]
    assert found["val"][0].path == f"{tmp_path}/caf\udce9.mp4"
    assert [path.name for path in source.inputs()] == [
        "train.npy",
        "train_labels.npy",
        "val.npy",
        "val_labels.npy",
    ]


def test_labels_default_to_0_and_may_be_names(save):
    paths = np.array([f"{i}_g{i // 2:02d}_.mp4" for i in range(40)])
    source = NpyListing(
        train=save("train", paths), val_share=0.25, root="/v", classes=["x", "y"], group_pattern=r"_g(\d+)_"
    )
    found = source.manifests()
    assert [len(each) for each in found.values()] == [30, 10]
    assert found["train"].classes == ("x", "y") and not found["train"].labels.any()
    names = np.array(["walk", "run"] * 20)
    source = NpyListing(train=save("t", paths), train_labels=save("l", names), val_share=0.25)
    assert source.manifests()["train"].classes == ("run", "walk")


@pytest.mark.filterwarnings("ignore:Custom dtypes are saved as python objects")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(["a", "b"], dtype=object), r"holds Python objects.*allow_pickle=True\).astype\(np.str_\)"),
        (VARIABLE, "holds Python objects"),
        (np.array([["a"], ["b"]]), r"must hold one row of text; it holds <U1 of shape \[2, 1\]"),
        (np.array([1, 2]), "must hold one row of text; it holds int64"),
        (np.array(["a", ""]), "entry 1 is empty"),
        (np.array([], dtype="<U4"), "lists no videos"),
        (np.array(["a", "b", "c"]), "train.npy holds 3 paths, .*labels.npy 2 labels"),
    ],
)  # fmt: skip
def test_says_what_is_wrong(save, values, message):
    if values is None:
        pytest.skip("NumPy 1 has no such type")
    source = NpyListing(train=save("train", values), train_labels=save("labels", np.array([0, 1])), val_share=0.5)
    if "no videos" in message:
        save("labels", np.array([], dtype=int))
    with pytest.raises(UserError, match=message):
        source.manifests()


def test_an_array_of_objects_may_be_saved_again_as_it_says(save):
    """The command in the message mends it."""
    path = save("train", np.array(["a.mp4", "b.mp4"], dtype=object))
    np.save(path, np.load(path, allow_pickle=True).astype(np.str_))
    assert len(NpyListing(train=path, val_share=0.5).manifests()["train"]) == 1


def test_bad_labels_and_files(save, tmp_path):
    paths = save("train", np.array(["a", "b"]))
    with pytest.raises(UserError, match="labels.npy: entry 1: label '-1'"):
        NpyListing(train=paths, train_labels=save("labels", np.array([0, -1])), val_share=0).manifests()
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(UserError, match="text.npy (is not an array|holds Python)"):
        NpyListing(train=str(tmp_path / "text.npy"), val_share=0).manifests()
    with pytest.raises(UserError, match="none.npy: there is no such file"):
        NpyListing(train="none.npy", val_share=0).manifests()
    with pytest.raises(UserError, match="val_labels=x .*dataset.source.val"):
        NpyListing(train=paths, val_labels="x").manifests()


def test_labels_are_given_for_every_split_or_for_none(save):
    paths, labels = save("paths", np.array(["a.mp4", "b.mp4"])), save("labels", np.array([0, 1]))
    others = save("others", np.array(["c.mp4"]))
    with pytest.raises(UserError, match="val has none: give .*val_labels"):
        NpyListing(train=paths, train_labels=labels, val=others).manifests()
    with pytest.raises(UserError, match="train has none: give .*train_labels"):
        NpyListing(train=paths, test=others, test_labels=labels, val_share=0.5).manifests()


def test_integers_that_were_saved_as_floats(save):
    paths = {"train": save("t", np.array(["a", "b", "c"])), "val": save("v", np.array(["d"]))}
    val = save("vl", np.array([1.0]))
    found = NpyListing(**paths, train_labels=save("tl", np.array([0.0, 2.0, 1.0], "f4")), val_labels=val).manifests()
    assert found["train"].labels.tolist() == [0, 2, 1] and found["train"].classes == ("0", "1", "2")
    for values, label in (([0.0, 0.5, 1.0], "0.5"), ([0.0, np.nan, 1.0], "nan"), ([0.0, np.inf, 1.0], "inf")):
        with pytest.raises(UserError, match=f"tl.npy: entry 1: label {label}"):
            NpyListing(**paths, train_labels=save("tl", np.array(values)), val_labels=val).manifests()
