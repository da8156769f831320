"""Indexes, tables and stores from elsewhere: each with a pickle that would leave a file if it were opened."""

import json
import os
import pickle
import sqlite3
import zlib

import av
import numpy as np
import pytest
import torch

from vidtrain.data.decoding.index import FORMAT, VideoIndex
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.prepared.copy import SCHEMA, PreparedCopy
from vidtrain.data.prepared.reencode import EncodeSettings
from vidtrain.errors import UserError
from vidtrain.evaluation import view_store
from vidtrain.evaluation.view_store import HEADER, MARK, find_units
from vidtrain.runs.token_store import TokenStore


class Bomb:
    """Leaves a file when its pickle is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def bomb(tmp_path):
    made = Bomb(tmp_path / "ran")
    pickle.loads(pickle.dumps(made))
    (tmp_path / "ran").rmdir()  # so it works
    yield made
    assert not (tmp_path / "ran").exists()


def objects(bomb):
    found = np.empty(1, dtype=object)
    found[0] = bomb
    return found


@pytest.mark.parametrize("name", [view_store.LOGITS, view_store.LABELS])
@pytest.mark.parametrize("videos", [0, 1])
def test_a_view_table(name, videos, bomb, tmp_path):
    folder = tmp_path / "views"
    view_store.begin(folder, {}, None, 1, overwrite=False)
    (folder / view_store.VIEWS).write_text(json.dumps({"format": view_store.FORMAT, "videos": videos}))
    for each in (view_store.LOGITS, view_store.LABELS):
        np.save(folder / each, np.zeros(1))
    np.save(folder / name, objects(bomb), allow_pickle=True)
    (folder / view_store.VIDEOS).write_text("index,path,label\n0,a.mp4,a\n")
    with pytest.raises(UserError, match="table in .* is damaged: .*overwrite=true"):
        view_store.open_views(folder)
    (folder / name).write_bytes(pickle.dumps(bomb))  # NumPy tries to read what is no array as a pickle
    with pytest.raises(UserError, match="the view table in .* is damaged"):
        view_store.open_views(folder)


@pytest.mark.parametrize("name", ["indices", "labels", "logits", "frames", "missing"])
def test_the_parts_of_a_view_table_that_is_being_made(name, bomb, tmp_path):
    arrays = dict.fromkeys(("indices", "labels", "logits", "frames"), np.zeros(0))
    arrays["missing"] = np.frombuffer(b"[]", np.uint8)
    np.savez(tmp_path / "part.npz", **{**arrays, name: objects(bomb)}, allow_pickle=True)
    data = (tmp_path / "part.npz").read_bytes()
    (tmp_path / "rank0.bin").write_bytes(HEADER.pack(MARK, 0, len(data), zlib.crc32(data)) + data)
    with pytest.raises(UserError, match="rank0.bin does not hold views"):
        find_units(tmp_path)[0].read()


def test_the_index_of_videos(bomb, tmp_path):
    video = str(tmp_path / "a.mp4")
    with av.open(video, "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    index = VideoIndex(tmp_path / "videos.sqlite")
    status = os.stat(video)
    for entry in (pickle.dumps(bomb), zlib.compress(pickle.dumps(bomb))):
        with sqlite3.connect(tmp_path / "videos.sqlite") as database:
            row = (os.fsencode(video), status.st_size, status.st_mtime_ns, FORMAT, entry)
            database.execute("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?, ?)", row)
        assert VideoIndex(tmp_path / "videos.sqlite").info(video).num_frames == 3
    index.close()


def test_the_ledger_of_a_prepared_copy(bomb, tmp_path):
    settings = EncodeSettings(short_side=32, gop=12, b_frames=3, crf=20, preset="fast")
    folder, source = tmp_path / "copy", str(tmp_path / "in/a.mp4")
    copy = PreparedCopy.begin(folder, [source, str(tmp_path / "in/b.mp4")], settings, "prepare")
    with sqlite3.connect(folder / "ledger.sqlite") as database:
        database.execute(SCHEMA)
        key = copy._key
        row = (b"a.mp4", 1, 1, key, 1, 0.0, pickle.dumps(bomb))
        database.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    assert list(copy.pending([source])) == [source]
    assert (
        copy.redirect(Manifest([Record(source, 0, source)], ("a",))).paths[0] == source
    )  # as of one that was not readable


def test_cached_features(bomb, tmp_path):
    store = TokenStore(tmp_path / "store", {"format": "x"}, rows=4, shape=(64,), chunk=2)
    store.prepare()
    data = pickle.dumps(bomb)
    for name, size in (("tokens.f16", 512), ("read.i64", 32), ("done.u8", 2)):
        (tmp_path / "store" / name).write_bytes(data.ljust(size, b"\0")[:size])
    again = TokenStore(tmp_path / "store", {"format": "x"}, rows=4, shape=(64,), chunk=2)
    again.prepare()
    assert again.tokens.shape == (4, 64) and again.read.shape == (4,)
    (tmp_path / "store" / "key.json").write_bytes(data)
    with pytest.raises(UserError, match="are damaged or belong to something else"):
        again.prepare()


def test_the_study_of_a_sweep(bomb, tmp_path):
    pytest.importorskip("optuna", minversion="4", reason="needs the extra optuna")
    from omegaconf import OmegaConf
    from optuna.distributions import FloatDistribution

    from vidtrain.sweeps.optuna_sweeper import ask, open_study, sqlite_file

    study = open_study("sweep", sqlite_file(tmp_path / "study.db"), "max")
    for sampler in ("cma", "gp", "nsga2"):
        study._storage.set_study_system_attr(study._study_id, f"{sampler}:optimizer:0", pickle.dumps(bomb).hex())
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler"})
    assert ask(study, {"lr": FloatDistribution(0.0, 1.0)}, sampler, 0)[0] == 0


def test_a_checkpoint(bomb, tmp_path):
    from vidtrain.build.checkpoint_loader import open_trained

    torch.save({"format": "vidtrain/1", "model": bomb, "classes": [], "config": {}}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="bad.pt is refused: it holds objects"):
        open_trained(tmp_path / "bad.pt", trust_targets=True)


def test_arrays_in_a_checkpoint_are_numbers_and_never_addresses(tmp_path):
    """NumPy takes from a pickle that bytes are objects, and follows them: it ends the process, or worse."""
    from vidtrain.files.torch_files import read_torch_file

    class Forged:
        def __init__(self, code, state):
            self.code, self.state = code, state

        def __reduce__(self):
            return np.dtype, (self.code, False, True), self.state

    class Array:
        def __init__(self, dtype, data):
            self.dtype, self.data = dtype, data

        def __reduce__(self):
            make, arguments, _ = np.zeros(1).__reduce__()
            return make, arguments, (1, (1,), self.dtype, False, self.data)

    objects = Forged("O", (3, "|", None, None, None, -1, -1, 0))  # said to hold none
    fields = Forged("V8", (3, "|", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 16))
    for bad in (Array(objects, b"A" * 8), Array(fields, b"A" * 8), Array(np.dtype("f8"), b"A")):
        torch.save({"a": bad}, tmp_path / "bad.pt")
        with pytest.raises(UserError, match="bad.pt is refused: it holds objects"):
            read_torch_file(tmp_path / "bad.pt")
    good = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.float32(2.5),
        "c": np.array(["x", "yz"]),
        "d": np.arange(3)[::-1],
    }
    good |= {"e": np.asfortranarray(np.eye(2, 3, dtype=">i4")), "f": np.bool_(True)}
    torch.save(good, tmp_path / "good.pt")
    found = read_torch_file(tmp_path / "good.pt")
    for key, value in good.items():
        assert np.array_equal(found[key], value) and found[key].dtype == value.dtype.newbyteorder("="), key


@pytest.mark.slow
def test_a_checkpoint_chooses_no_folder_to_keep_an_index_in(tmp_path, capsys):
    from composing import config_of

    from vidtrain.build.data import index_file, keep_index_here
    from vidtrain.tracking.console import make_console

    console = make_console(is_main=True)
    elsewhere, usual = f"data.index_root={tmp_path}/projects", "data/index"
    cfg = config_of("train", elsewhere)
    keep_index_here(cfg, True, console)
    assert cfg.data.index_root == usual
    assert f"the checkpoint names {tmp_path}/projects" in "".join(capsys.readouterr().out.split("\n"))
    cfg = config_of("train", f"data_root={tmp_path}")
    keep_index_here(cfg, False, console)  # the data root of the checkpoint
    assert cfg.data.index_root == usual
    cfg = config_of("train", f"data_root={tmp_path}")
    keep_index_here(cfg, True, console)  # that of the command line
    assert cfg.data.index_root == f"{tmp_path}/index"
    cfg = config_of("train", elsewhere)
    index_file(cfg).parent.mkdir(parents=True)
    index_file(cfg).touch()
    keep_index_here(cfg, False, console)  # as training made it
    assert cfg.data.index_root == f"{tmp_path}/projects"
    for name in ("..", "../x", "/x", "a/../../b", "."):
        with pytest.raises(UserError, match="must be a relative path without"):
            keep_index_here(config_of("train", f"dataset.name='{name}'"), True, console)


def test_weights_to_start_from_with_a_changed_configuration(tmp_path):
    from safetensors.torch import save_file

    from vidtrain.models.weights import CARD_FORMAT, CARD_KEY
    from vidtrain.models.weights.files import read
    from vidtrain.models.weights.format import OWN

    for card in ("{", "[]", "{}", "[" * 100_000):
        save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {CARD_KEY: card})
        with pytest.raises(UserError, match="card in .*bad.safetensors is damaged"):
            read(tmp_path / "bad.safetensors", "bad.safetensors")
    for model in (1, {}, {"encoder": "x"}, {"encoder": {"_target_": "a.B"}, "head": []}):
        card = {"format": CARD_FORMAT, "config": {"model": model}}
        save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {CARD_KEY: json.dumps(card)})
        with pytest.raises(UserError, match=r"has no model\.(encoder|head)"):
            OWN.convert(read(tmp_path / "bad.safetensors", "bad.safetensors"), torch.nn.Linear(1, 1))


@pytest.mark.slow
def test_archives_that_would_fill_the_memory(tmp_path):
    from vidtrain.data.manifest.split_records import SplitRecord

    np.savez_compressed(tmp_path / "train.npz", blob=np.zeros(300_000_000, np.uint8))
    assert (tmp_path / "train.npz").stat().st_size < 400_000
    with pytest.raises(UserError, match=r"train.npz, .*it would become 300,000,1"):
        SplitRecord.open(tmp_path / "train.npz")
    data = (tmp_path / "train.npz").read_bytes()
    (tmp_path / "rank0.bin").write_bytes(HEADER.pack(MARK, 0, len(data), zlib.crc32(data)) + data)
    with pytest.raises(UserError, match="rank0.bin does not hold .*they would expand to 300,000,1"):
        find_units(tmp_path)[0].read()


def test_an_array_that_says_it_has_terabytes(tmp_path):
    folder = tmp_path / "views"
    view_store.begin(folder, {}, None, 1, overwrite=False)
    (folder / view_store.VIEWS).write_text(json.dumps({"format": view_store.FORMAT, "videos": 1}))
    np.save(folder / view_store.LOGITS, np.zeros(1))
    head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
    (folder / view_store.LABELS).write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    (folder / view_store.VIDEOS).write_text("index,path,label\n0,a.mp4,a\n")
    with pytest.raises(UserError, match="is damaged: Unable to allocate"):
        view_store.open_views(folder)
