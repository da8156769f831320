import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

from vidtrain.data.manifest.manifest import Manifest, Record, SourceInfo, check_same_classes
from vidtrain.errors import UserError

RECORDS = [Record("a.mp4", 0, "a"), Record("b.mp4", 1, "b"), Record("c.mp4", 1, "b")]
RICH = [
    Record("/v/run/a.mp4", 1, "anna", (1, 0)),
    Record("/v/run/ü b.mp4", 0, "/v/run/ü b.mp4", start=1.5, end=4.0, source=1),
    Record("/v/jump/c.mp4", 0, "anna", end=2.0, source=1),
    Record("/v/jump/latin\udce9.mp4", 1, "bert"),  # a file name that is no UTF-8
]
INFOS = (SourceInfo("one", 0.5, 16), SourceInfo("two", 2.0, None))


def rich() -> Manifest:
    return Manifest(RICH, ["jump", "run"], frame_rate=12.5, sources=INFOS)


def is_mapped(manifest):
    """Whether the labels lie in a mapped file."""
    array = manifest.columns.labels
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


def contents(manifest):
    return list(manifest), manifest.classes, manifest.frame_rate, manifest.sources


def test_reads_like_a_sequence():
    manifest = Manifest(RECORDS, ["jump", "run"])
    assert len(manifest) == 3
    assert manifest[2] == manifest[-1] == Record("c.mp4", 1, "b")
    assert list(manifest) == list(manifest[:]) == RECORDS
    assert manifest.classes == ("jump", "run")
    assert manifest.labels.dtype == np.int64
    assert manifest.labels.tolist() == [0, 1, 1]
    assert list(manifest.paths) == ["a.mp4", "b.mp4", "c.mp4"]
    assert manifest.paths[1:] == ["b.mp4", "c.mp4"]
    assert (manifest.multi_label, manifest.frame_rate) == (False, None)
    assert manifest.sources == (SourceInfo("all", 1.0, None),)
    with pytest.raises(IndexError):
        manifest[3]


def test_every_field_comes_back():
    manifest = rich()
    assert contents(manifest) == (RICH, ("jump", "run"), 12.5, INFOS)
    assert manifest.multi_label
    assert manifest.labels.tolist() == [1, 0, 0, 1]
    assert manifest[0].labels == (1, 0) and manifest[1].labels == (0,)


def test_a_record_holds_its_label_first():
    assert Record("a", 3, "a").labels == (3,)
    with pytest.raises(ValueError, match="a: label 3 is not the first of"):
        Record("a", 3, "a", (1, 3))


def test_what_no_record_needs_takes_nothing():
    columns = Manifest([Record(f"/videos/{i}.mp4", 0, f"/videos/{i}.mp4") for i in range(9)], ["a"]).columns
    assert columns.paths.prefix == "/videos/"
    assert columns.paths.blob.tobytes() == b"0.mp41.mp42.mp43.mp44.mp45.mp46.mp47.mp48.mp4"
    assert columns.paths.offsets.dtype == np.uint32 and columns.labels.dtype == np.int32
    rest = {name: value for name, value in vars(columns).items() if name not in ("paths", "labels")}
    assert set(rest.values()) == {None}


def test_subset():
    part = rich().subset([3, 0, 0])
    assert contents(part) == ([RICH[3], RICH[0], RICH[0]], ("jump", "run"), 12.5, INFOS)
    assert list(part.columns.group_names) == ["anna", "bert"]
    own = rich().subset(np.array([1]))
    assert own[0] == RICH[1]
    assert Manifest(RECORDS, ["jump", "run"]).subset(range(1, 3))[1] == RECORDS[2]


@pytest.mark.parametrize(
    ("records", "classes", "message"),
    [
        (RECORDS, [], "names no classes"),
        ([], ["jump"], "holds no videos of its 1 class"),
        (RECORDS, ["jump"], r"b\.mp4: label 1 is outside 0\.\.0"),
        ([Record("a.mp4", -1, "a")], ["jump"], r"a\.mp4: label -1 is outside"),
        ([RECORDS[0], Record("m.mp4", 0, "m", (0, 1))], ["jump"], r"m\.mp4: label 1 is outside"),
        (RECORDS, ["jump", "run", "jump"], "more than once: jump"),
    ],
)
def test_refuses_what_is_no_dataset(records, classes, message):
    with pytest.raises(UserError, match=message):
        Manifest(records, classes)


def test_splits_must_share_their_classes():
    train = Manifest(RECORDS, ["jump", "run"])
    check_same_classes({"train": train, "val": Manifest(RECORDS, ["jump", "run"])})
    with pytest.raises(UserError, match="missing jump; extra swim, walk"):
        check_same_classes({"train": train, "val": Manifest(RECORDS, ["run", "swim", "walk"])})
    with pytest.raises(UserError, match="the same names in another order"):
        check_same_classes({"train": train, "val": Manifest(RECORDS, ["run", "jump"])})


# --- files ------------------------------------------------------------------------------------------------


def test_a_saved_one_comes_back(tmp_path):
    digest = rich().save(tmp_path / "m")
    found = Manifest.open(tmp_path / "m")
    assert contents(found) == contents(rich())
    assert is_mapped(found)
    assert rich().save(tmp_path / "again") == digest
    assert found.subset([1, 2]).save(tmp_path / "part") != digest
    with pytest.raises(FileExistsError):  # what is mapped is never written over
        rich().save(tmp_path / "m")


def test_one_in_memory_is_pickled_whole():
    assert contents(pickle.loads(pickle.dumps(rich()))) == contents(rich())


def test_one_from_a_folder_is_pickled_as_its_name(tmp_path, monkeypatch):
    records = [Record(f"/videos/{i:06d}.mp4", 0, "all") for i in range(5000)]
    Manifest(records, ["a"]).save(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Manifest.open("m"))
    assert len(data) < 400
    monkeypatch.chdir("/")
    assert list(pickle.loads(data)) == records
    shutil.rmtree(tmp_path / "m")
    Manifest(records[1:], ["a"]).save(tmp_path / "m")
    with pytest.raises(UserError, match="was replaced while it was in use"):
        pickle.loads(data)


def test_a_spawned_process_maps_the_same_file(tmp_path):
    rich().save(tmp_path / "m")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Manifest.__getitem__, (Manifest.open(tmp_path / "m"), 1)) == RICH[1]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("manifest.json", lambda data: data[:5], "damaged"),
        ("manifest.json", lambda data: b"[]", "damaged"),
        ("manifest.json", lambda data: data.replace(b'"frame_rate"', b'"framerate"'), "damaged .*frame_rate"),
        ("labels.npy", lambda data: b"", "damaged"),
        ("labels.npy", lambda data: b"PK" + data[2:], "damaged"),
        ("starts.npy", lambda data: data[:-4], "damaged"),
        ("paths.npy", lambda data: data[:-4], "damaged"),
    ],
)
def test_a_damaged_one_is_named(tmp_path, file, damage, message):
    rich().save(tmp_path / "m")
    path = tmp_path / "m" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{tmp_path}/m is {message}.*delete it"):
        Manifest.open(tmp_path / "m")


def test_damaged_columns_are_found(tmp_path):
    manifest = Manifest(RECORDS, ["jump", "run"])
    manifest.columns.paths.offsets[1] = 99
    manifest.save(tmp_path / "m")
    with pytest.raises(UserError, match="offsets of its paths"):
        Manifest.open(tmp_path / "m")
    rich().save(tmp_path / "rich")
    for name, values in (("sources", [0, 1]), ("label_offsets", [0, 2]), ("paths.offsets", [0, 1, 2, 3, 4])):
        whole = (tmp_path / "rich" / f"{name}.npy").read_bytes()
        np.save(tmp_path / "rich" / f"{name}.npy", np.array(values))
        with pytest.raises(UserError, match="damaged .its (columns|labels|paths) are"):
            Manifest.open(tmp_path / "rich")
        (tmp_path / "rich" / f"{name}.npy").write_bytes(whole)
    assert contents(Manifest.open(tmp_path / "rich")) == contents(rich())


def test_an_absent_one_is_named(tmp_path):
    with pytest.raises(UserError, match="/none cannot be opened: No such file"):
        Manifest.open(tmp_path / "none")
