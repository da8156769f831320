"""One class has one spelling, in every source and wherever classes are compared with each other."""

import json
import unicodedata

import numpy as np
import pytest

from vidtrain.data.manifest.manifest import (
    Manifest,
    Record,
    appearance,
    check_appearance,
    in_order_of,
    one_spelling,
    spelled_classes,
)
from vidtrain.data.manifest.splitting import check_present
from vidtrain.data.sources.folders import ClassFolders, FrameFolders
from vidtrain.data.sources.labels import class_list
from vidtrain.data.sources.listings import Listing, Mixture, NpyListing, Part
from vidtrain.data.sources.published import HMDB51, UCF101, Kinetics, SomethingSomething
from vidtrain.errors import UserError

NFC, NFD = "café", "cafe\u0301"  # one code point and two, as Linux and macOS write the folder
HANGUL = "\ud55c", "\u1112\u1161\u11ab"


def plant(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (NFC, "café"),
        (NFD, "café"),
        (HANGUL[1], HANGUL[0]),
        (" drinking \t", "drinking"),
        ("drinking\u00a0", "drinking"),
        ("\ufeffdrinking\u200b", "drinking"),
        ("\u200e drinking\u2060\u3000", "drinking"),
        ("\u00e5\u200b", "\u00e5"),
        ("\u212b", "\u00c5"),  # the sign of the unit, which Unicode composes to the letter
        ("\u200b ", ""),
        # these are seen, or spell: superscript, ligature, joiners of Persian, of an emoji, letter case
        ("x²", "x²"),
        ("ﬁlm", "ﬁlm"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("Drinking Tea", "Drinking Tea"),
    ],
)
def test_one_spelling(written, name):
    assert one_spelling(written) == name
    assert one_spelling(name) == name
    assert unicodedata.is_normalized("NFC", one_spelling(written))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("drin\u200bking", "drinking"), r"'drin\\u200bking' and 'drinking'"),
        (("a", "ice\u00a0cream", "ice cream"), r"'ice\\xa0cream' and 'ice cream'"),
        (("ice cream", "ice  cream"), "'ice cream' and 'ice  cream'"),
        (("so\u00adfa", "sofa"), r"'so\\xadfa' and 'sofa'"),
        (("ab", "a\x07b"), r"'ab' and 'a\\x07b'"),
        (("ab", "a\u200db"), r"'ab' and 'a\\u200db'"),
    ],
)
def test_look_alikes_are_refused_with_what_is_not_seen(names, message):
    with pytest.raises(UserError, match=f"^train: .*{message}"):
        check_appearance(names, "train")


def test_what_is_seen_may_differ():
    names = (
        "a",
        "A",
        "a b",
        "ab",
        "x²",
        "x2",
        "ﬁlm",
        "film",
        "cafe",
        "café",
        "½",
        "1/2",
        "می\u200cخواهم",
        "",
    )
    check_appearance(names, "train")
    assert len({appearance(name) for name in names}) == len(names)


def test_stored_classes_keep_their_number():
    assert spelled_classes([NFD, "run "]) == ("café", "run")
    assert spelled_classes([NFD, NFC]) == (NFD, NFC)  # of a run that took them for two


@pytest.mark.parametrize("other", [NFD, f"{NFC} ", f"{NFD}\u200b", f"\ufeff{NFC}"])
def test_class_folders(tmp_path, other):
    root = plant(tmp_path, "train/dive/1.mp4", f"train/{NFC}/2.mp4", f"val/{other}/3.mp4", "val/dive/4.mp4")
    found = ClassFolders(root).manifests()
    assert found["train"].classes == found["val"].classes == ("café", "dive")
    assert list(found["val"].paths) == [f"{root}/val/{other}/3.mp4", f"{root}/val/dive/4.mp4"]  # as on disk
    assert found["val"].labels.tolist() == [0, 1]


def test_two_folders_of_one_class(tmp_path, caplog):
    root = plant(tmp_path, f"train/{NFC}/2.mp4", f"train/{NFD}/1.mp4", f"val/{NFC}/3.mp4")
    found = ClassFolders(root).manifests()
    assert found["train"].classes == ("café",) and len(found["train"]) == 2
    assert "the class café of" in caplog.text and "lies in two folders that are spelled alike" in caplog.text
    with pytest.raises(UserError, match="is invisible"):
        ClassFolders(plant(tmp_path, "train/\u200b/2.mp4")).manifests()


def test_class_folders_whose_names_only_look_alike(tmp_path):
    root = plant(tmp_path, "train/a\u200bb/1.mp4", "val/ab/2.mp4")
    with pytest.raises(UserError, match=r"'val' .*: missing a\\u200bb; extra ab"):
        ClassFolders(root).manifests()


def listing(folder, name, train, val=None, **settings):
    files = {}
    for split, text in (("train", train), ("val", val)):
        if text is not None:
            (folder / f"{name}_{split}.csv").write_text(text)
            files[split] = str(folder / f"{name}_{split}.csv")
    return Listing(**files, root="/v", **settings)


def test_listings(tmp_path):
    train, val = f"1.mp4,{NFC}\n2.mp4,{NFD}\n3.mp4,dive\u00a0\n", f"4.mp4,{NFD}\u200b\n"
    found = listing(tmp_path, "x", train, val).manifests()
    assert found["train"].classes == ("café", "dive")
    assert found["train"].labels.tolist() == [0, 0, 1] and found["val"].labels.tolist() == [0]
    several = listing(tmp_path, "y", f"1.mp4,{NFC}; dive\n2.mp4,{NFD}\n", val, label_separator=";").manifests()
    assert several["train"].classes == ("café", "dive")
    with pytest.raises(UserError, match=r"x_train.csv:1: a label twice"):
        listing(tmp_path, "x", f"1.mp4,{NFC};{NFD}\n", val, label_separator=";").manifests()


def test_listings_name_what_is_not_seen(tmp_path):
    with pytest.raises(UserError, match=r"'train': .*'dive' and 'di\\u200bve'"):
        listing(tmp_path, "x", "1.mp4,dive\n2.mp4,di\u200bve\n", "3.mp4,dive\n").manifests()
    with pytest.raises(UserError, match=r"x_val.csv:1: label 'di\\u200bve' is not among"):
        listing(tmp_path, "x", "1.mp4,dive\n2.mp4,run\n", "3.mp4,di\u200bve\n").manifests()


def test_classes_in_a_list_or_a_file(tmp_path):
    (tmp_path / "names.txt").write_text(f"dive \n{NFD}\u200b\n")
    (tmp_path / "list.json").write_text(json.dumps(["dive", NFD]))
    (tmp_path / "numbers.json").write_text(json.dumps({NFD: 1.0, " dive": "0.0"}))
    for classes in (
        ["dive", NFD],
        *(str(tmp_path / name) for name in ("names.txt", "list.json", "numbers.json")),
    ):
        assert class_list(classes) == ("dive", "café")
        found = listing(tmp_path, "x", f"1.mp4,{NFC}\n", f"2.mp4,{NFD}\n", classes=classes).manifests()
        assert found["train"].labels.tolist() == found["val"].labels.tolist() == [1]
    (tmp_path / "numbers.json").write_text(json.dumps({NFD: 1, NFC: 0}))
    with pytest.raises(UserError, match=r"numbers.json .*'caf\\xe9' and 'cafe\\u0301'"):
        class_list(str(tmp_path / "numbers.json"))
    (tmp_path / "numbers.json").write_text(json.dumps({"a": 0.7, "b": 1}))
    with pytest.raises(UserError, match="integers: 'a' has 0.7"):
        class_list(str(tmp_path / "numbers.json"))


def test_npy_listings(tmp_path):
    def save(name, values):
        np.save(tmp_path / f"{name}.npy", np.array(values))
        return str(tmp_path / f"{name}.npy")

    found = NpyListing(
        train=save("a", ["1.mp4", "2.mp4", "3.mp4"]), train_labels=save("b", [NFC, NFD, "dive "]),
        val=save("c", ["4.mp4"]), val_labels=save("d", [NFD]),
    ).manifests()  # fmt: skip
    assert found["train"].classes == ("café", "dive") and found["train"].labels.tolist() == [0, 0, 1]


def test_mixtures(tmp_path):
    one = listing(tmp_path, "one", f"1.mp4,{NFC}\n2.mp4,dive\n", f"3.mp4,{NFC}\n")
    two = listing(tmp_path, "two", f"4.mp4,{NFD}\n5.mp4,dive\n", val_share=0)
    assert Mixture({"one": Part(one), "two": Part(two)}).manifests()["train"].labels.tolist() == [0, 1, 0, 1]
    two = listing(tmp_path, "two", f"4.mp4,{NFD}\n5.mp4,di\u200bve\n", val_share=0)
    with pytest.raises(UserError, match=r"two .2. and one .2. .*di\\u200bve"):
        Mixture({"one": Part(one), "two": Part(two)}).manifests()


def test_official_splits_find_folders_of_the_other_form(tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "classInd.txt").write_text(f"1 {NFC}\n2 Dive\n")
    names = [f"{NFD}/v_{NFD}_g0{g}_c01.avi" for g in (1, 2, 3)] + [f"Dive/v_Dive_g0{g}_c01.avi" for g in (1, 2, 3)]
    (splits / "trainlist01.txt").write_text("".join(f"{n} {1 + ('Dive' in n)}\n" for n in names if "g03" not in n))
    (splits / "testlist01.txt").write_text("".join(f"{n}\n" for n in names if "g03" in n))
    plant(tmp_path / "videos", *(unicodedata.normalize("NFC", name) for name in names))
    settings = {"annotations": str(splits), "val_share": 0.5}
    found = UCF101(root=str(tmp_path / "videos"), **settings).manifests()
    assert found["train"].classes == ("café", "Dive") and len(found["test"]) == 2

    for name, film in ((NFD, "x"), ("dive", "y")):
        rows = "".join(f"{film}{k}_{name}_f_0.avi {1 + (k == 3)}\n" for k in (1, 2, 3))
        (splits / f"{name}_test_split1.txt").write_text(rows)
        plant(
            tmp_path / "hmdb",
            *(f"{one_spelling(name)}/{film}{k}_{one_spelling(name)}_f_0.avi" for k in (1, 2, 3)),
        )
    found = HMDB51(root=str(tmp_path / "hmdb"), **settings).manifests()
    assert found["train"].classes == ("café", "dive") and found["test"].labels.tolist() == [0, 1]


def test_kinetics_something_and_frames(tmp_path):
    plant(tmp_path / "k", f"train/{NFD}/aaaaaaaaaaa_000002_000012.mp4", "train/dive/b_000002_000012.mp4",
          f"val/{NFC}/c_000002_000012.mp4")  # fmt: skip
    (tmp_path / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        f"{NFC},aaaaaaaaaaa,2,12,train\ndive ,b,2,12,train\n{NFD},c,2,12,val\n"
    )
    found = Kinetics(root=str(tmp_path / "k"), annotations=[str(tmp_path / "k.csv")]).manifests()
    assert found["train"].classes == ("café", "dive") and found["val"].labels.tolist() == [0]

    plant(tmp_path / "s", "1.webm", "2.webm", "3.webm")
    for name, held in (
        ("labels", {NFC: "0", "dive": "1"}),
        ("train", [{"id": "1", "template": f"[{NFD}]"}, {"id": "2", "template": "dive\u200b"}]),
        ("val", [{"id": "3", "template": NFD}]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
    files = {name: str(tmp_path / f"{name}.json") for name in ("labels", "train", "val")}
    found = SomethingSomething(root=str(tmp_path / "s"), **files).manifests()
    assert found["train"].labels.tolist() == [0, 1] and found["val"].labels.tolist() == [0]

    for name in "abcd":
        (tmp_path / name).mkdir()
    (tmp_path / "truth.csv").write_text(f"youtube_id,folder_name,label\n1,a,{NFC}\n2,b,{NFD}\n3,c,dive\n4,d,dive \n")
    pool = FrameFolders(root=str(tmp_path), frame_rate=10.0, ground_truth=str(tmp_path / "truth.csv")).pool()
    assert pool.classes == ("café", "dive") and pool.labels.tolist() == [0, 0, 1, 1]


def test_the_same_classes_in_another_order():
    manifest = Manifest([Record("1", 0, "1"), Record("2", 1, "2"), Record("3", 2, "3")], "abc")
    found = in_order_of(manifest, ("c", "a", "b"))
    assert [found.classes[label] for label in found.labels] == ["a", "b", "c"]
    assert in_order_of(manifest, ("a", "b", "c")) is manifest


def test_names_that_are_no_utf8_are_refused(tmp_path):
    latin = "caf\udce9"
    root = plant(tmp_path, f"train/{latin}/1.mp4", f"val/{latin}/2.mp4")
    with pytest.raises(UserError, match=r"'train': .* 'caf\\udce9' .* rename it"):
        ClassFolders(root).manifests()
    (tmp_path / "names.txt").write_bytes(b"run\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"names.txt: .* 'caf\\udce9' .*not UTF-8"):
        class_list(str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_bytes("run\ncafé\n".encode("utf-16"))
    assert class_list(str(tmp_path / "names.txt")) == ("run", "café")


def test_sources_of_others_are_in_one_spelling_too():
    assert Manifest([Record("1", 0, "1")], [f"{NFD} ", "run"]).classes == (NFC, "run")


def test_files_in_the_other_form_are_told(tmp_path):
    plant(tmp_path, f"{NFD}.mp4")
    found = {"train": Manifest([Record(f"{tmp_path}/{NFC}.mp4", 0, "1")], ["run"])}
    with pytest.raises(UserError, match="missing, such as .*Unicode's forms"):
        check_present(found, "is the root right?", print)
    found = {"train": Manifest([Record(f"{tmp_path}/caf\udce9.mp4", 0, "1")], ["run"])}
    with pytest.raises(UserError, match="bytes that are not UTF-8"):
        check_present(found, "is the root right?", print)
