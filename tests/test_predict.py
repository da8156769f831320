"""The predicting program: its answers against those of evaluation, what it leaves, what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from composing import config_of
from fork_server import run_program
from PIL import Image
from small_run import small

from vidtrain.app.launch import find_faults
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.build.checkpoint_loader import open_trained
from vidtrain.config.overrides import positional_to_override
from vidtrain.config.renames import migrate
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.errors import UserError
from vidtrain.export import export
from vidtrain.predict import check, predict
from vidtrain.prediction import outputs as prediction_outputs
from vidtrain.prediction.options import class_number
from vidtrain.prediction.outputs import Outputs
from vidtrain.train import train
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks

pytestmark = pytest.mark.usefixtures("without_pictures")
SMALL = small(
    "clip.eval_clips=2",
    "logger=none",
    "trainer.epochs=1",
    "trainer.batch_size=4",
    "trainer.eval_batch_size=6",
    test=2,
    frames=32,
)


def faults(*overrides):
    return [": ".join(fault[1:]) for fault in find_faults("predict", overrides, check)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(config_of("train", *SMALL, f"data_root={data}", f"run_dir={folder}"))
    return folder


@pytest.fixture(scope="module")
def graph(run, tmp_path_factory):
    """The run's best checkpoint as an ONNX file."""
    out = tmp_path_factory.mktemp("export")
    export(config_of("export", f"checkpoint={run}", "formats=[onnx]", "card=false", f"out={out}"))
    return out / "model.onnx"


@pytest.fixture(scope="module")
def test_split(run, data):
    """The paths of the test split, in its order."""
    with open(run / "eval/test/predictions.csv", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def listing(test_split, tmp_path_factory):
    path = tmp_path_factory.mktemp("listing") / "test.txt"
    path.write_text("\n".join(test_split))
    return path


def predicted(*overrides):
    """Runs the program in this process, with workers only where they are asked for."""
    predict(config_of("predict", "num_workers=0", *overrides))


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(out, paths):
    common = Path(*Path(paths[0]).parts[: len(Path(paths[0]).parts) - 2])
    files = [out / Path(path).relative_to(common).with_suffix("") / "logits.npz" for path in paths]
    return [dict(np.load(file)) for file in files]


# --- the answers ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_logits_are_those_of_evaluation_to_the_bit(run, listing, test_split, tmp_path):
    opened = open_trained(run / "checkpoints/best.pt", trust_targets=False)
    cfg, ranks = migrate(opened.config, "it"), Ranks(torch.device("cpu"))
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    model = opened.model(cfg, ranks).eval()
    transform = opened.transform(cfg, model, ranks.device)
    manifest = build.instantiate_component(cfg.dataset.source).manifests()["test"]
    assert list(manifest.paths) == test_split
    loader = build_data.eval_data(
        cfg, "test", manifest, build_data.Reading(build_data.VideoIndex(None), None), ranks
    ).loader
    with torch.no_grad():
        expected = torch.cat([model(transform(batch.clips)) for batch in loader])
    predicted(f"checkpoint={run}", f"videos={listing}", f"out={tmp_path}", "logits=true", "num_workers=2")
    found = numbers_of(tmp_path, test_split)
    assert found[0]["clip_logits"].shape == (1, 2, 10) and list(found[0]["classes"]) == list(opened.classes)
    assert torch.equal(torch.from_numpy(np.concatenate([each["clip_logits"] for each in found])), expected)
    fused = torch.from_numpy(np.concatenate([each["logits"] for each in found]))
    assert torch.equal(fused, expected.mean(dim=1))
    # and what the run itself wrote down when it was evaluated
    written = rows_of(run / "eval/test/predictions.csv")
    for row, stored in zip(rows_of(tmp_path / "predictions.csv"), written, strict=True):
        assert (row["path"], row["top1"]) == (stored["path"], stored["prediction"])
        assert [row["p1"], row["top5"]] == [str(float(stored["p1"])), stored["top5"]]


def test_an_answer_by_hand(run, test_split, tmp_path):
    """Frames decoded in order by PyAV alone, cut and scaled by PIL: 2 clips of 8 frames, 3 apart, of 32 frames start
    at 0 and 10; the short side of 32 pixels is as 18 to the 16 that are seen."""
    with av.open(test_split[3]) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) == 32 and frames[0].size == (32, 32)
    side = round(32 / 18.288 * 16)
    left = (32 - side) // 2
    clips = [
        [frames[start + 3 * place].resize((16, 16), Image.Resampling.BICUBIC, (left, left, left + side, left + side))
         for place in range(8)] for start in (0, 10)
    ]  # fmt: skip
    pixels = torch.from_numpy(np.array([[np.array(frame) for frame in clip] for clip in clips])) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    opened = open_trained(run / "checkpoints/best.pt", trust_targets=False)
    model = opened.model(migrate(opened.config, "it"), Ranks(torch.device("cpu"))).eval()
    with torch.no_grad():
        expected = model(((pixels - mean) / std).permute(0, 4, 1, 2, 3)[None].float()).mean(dim=1)
    predicted(f"checkpoint={run}", f"videos={test_split[3]}", f"out={tmp_path}", "logits=true")
    found = np.load(tmp_path / Path(test_split[3]).stem / "logits.npz")["logits"]
    np.testing.assert_allclose(found, expected.numpy(), atol=0.03)  # PIL's kernel is another
    assert float(expected.std()) > 0.1


@pytest.mark.slow
def test_an_exported_graph_gives_the_same_answers(run, graph, listing, tmp_path):
    for name, file in (("torch", run), ("onnx", graph)):
        predicted(f"checkpoint={file}", f"videos={listing}", f"out={tmp_path / name}")
    ours, exported = (rows_of(tmp_path / name / "predictions.csv") for name in ("torch", "onnx"))
    assert [row["top1"] for row in exported] == [row["top1"] for row in ours] and len(exported) == 20
    assert max(abs(float(a["p1"]) - float(b["p1"])) for a, b in zip(ours, exported, strict=True)) < 3e-6


def test_options_change_the_protocol(run, test_split, capsys):
    predicted(f"checkpoint={run}", f"videos={test_split[0]}", "format=json", "eval_clips=3", "fusion=mean_probs")
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"] == "8x3 frames at 16x16, 3 clips x 1 crop, mean_probs"


def changed(run, path, **parts):
    """The run's checkpoint with other parts of its configuration; None takes one away."""
    payload = torch.load(run / "checkpoints/best.pt", weights_only=True)
    for key, value in parts.items():
        if value is None:
            del payload["config"][key]
        else:
            payload["config"][key] = value
    checkpoint.save(payload, path)
    return path


def test_classes_that_are_judged_alone_have_probabilities_of_their_own(run, test_split, tmp_path):
    loss = {
        "_target_": "vidtrain.training.losses.BinaryCrossEntropy",
        "label_smoothing": 0.0,
        "pos_weight": None,
    }
    file = changed(run, tmp_path / "bce.pt", loss=loss)
    predicted(f"checkpoint={file}", f"videos={test_split[0]}", f"out={tmp_path}", "logits=true", "topk=10")
    (row,) = rows_of(tmp_path / "predictions.csv")
    logits = np.load(tmp_path / Path(test_split[0]).stem / "logits.npz")["logits"][0]
    assert sorted(float(row[f"p{rank}"]) for rank in range(1, 11)) == pytest.approx(
        sorted(1 / (1 + np.exp(-logits))), abs=1e-6
    )


def test_what_only_training_needs_may_be_absent(run, test_split, tmp_path, capsys):
    absent = dict.fromkeys(("dataset", "optimizer", "schedule", "stage", "logger"))
    file = changed(run, tmp_path / "bare.pt", **absent)
    predicted(f"checkpoint={file}", f"videos={test_split[0]}", "format=csv")
    predicted(f"checkpoint={run}", f"videos={test_split[0]}", "format=csv")
    first, second = capsys.readouterr().out.split("path,")[1:]
    assert first == second


# --- what could not be read -------------------------------------------------------------------------------


def test_a_broken_file_is_named_and_the_rest_goes_on(run, test_split, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, path in enumerate(test_split[:4]):
        shutil.copy(path, folder / f"{number}.mp4")
    (folder / "1_broken.mp4").write_bytes(b"no video")
    (folder / "2_empty.mp4").touch()
    options = ["format=json", "num_workers=1", f"out={tmp_path / 'out'}"]
    ended = run_program("predict", f"checkpoint={run}", folder, *options)
    assert ended.returncode == 1, ended.stderr
    found = json.loads(ended.stdout)  # and nothing else stands there
    assert [Path(video["path"]).name for video in found["videos"]] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert [Path(each["path"]).name for each in found["failures"]] == ["1_broken.mp4", "2_empty.mp4"]
    assert found["failures"][1]["cause"] == "the file is empty"
    assert "error: 2 of 6 videos could not be read" in ended.stderr and "Traceback" not in ended.stderr
    assert [row["cause"] for row in rows_of(tmp_path / "out/failures.csv")][1] == "the file is empty"
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == found


def test_answers_so_far_outlive_an_end(run, listing, test_split, tmp_path, capsys, monkeypatch):
    class Interrupted(Outputs):
        def take(self, found):
            if len(self.results.videos) == 2:
                raise KeyboardInterrupt
            super().take(found)

    call = (f"checkpoint={run}", f"videos={listing}", "format=csv", f"out={tmp_path}")
    with monkeypatch.context() as patched:
        patched.setattr(prediction_outputs, "Outputs", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            predicted(*call)
    partial = tmp_path / "predictions.partial.csv"
    told = capsys.readouterr()
    assert told.out == partial.read_text()
    assert [row["path"] for row in rows_of(partial)] == test_split[:2]
    assert f"ended early: the predictions for 2 videos are in {partial}" in told.err.replace("\n", " ")
    (tmp_path / "failures.csv").write_text("of a call before")
    predicted(*call)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "predictions.json"]
    assert capsys.readouterr().out == (tmp_path / "predictions.csv").read_text()
    predicted(*call[:-1], f"out={tmp_path / 'one.json'}")
    assert json.loads((tmp_path / "one.json").read_text())["videos"][0]["path"] == test_split[0]
    assert not (tmp_path / "one.partial.csv").exists()


def test_nothing_that_can_be_read_is_a_failure_too(run, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for windows in ([], ["windows.stride=1", f"out={tmp_path / 'out'}"]):
        with pytest.raises(SystemExit) as ended:
            predicted(f"checkpoint={run}", f"videos={tmp_path}", "format=json", *windows)
        assert ended.value.code == 1
        assert json.loads(capsys.readouterr().out)["videos"] == []


# --- windows ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_video(test_split, tmp_path_factory):
    """Four videos one after the other, of which each has 32 frames: 5.12 s."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        number = 0
        for each in (test_split[0], test_split[5], test_split[10], test_split[15]):
            with av.open(each) as source:
                for frame in source.decode(video=0):
                    picture = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
                    picture.pts, number = number, number + 1
                    container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.mark.slow
def test_windows_tell_what_happens_when(run, long_video, tmp_path):
    predicted(
        f"checkpoint={run}", f"videos={long_video}", f"out={tmp_path}", "windows.stride=0.5", "logits=true",
        "batch_size=3", "topk=2", "render=true",
    )  # fmt: skip
    assert {path.name for path in (tmp_path / "long").iterdir()} == {
        "timeline.csv", "timeline.png", "segments.csv", "logits.npz", "labeled.mp4"
    }  # fmt: skip
    rows = rows_of(tmp_path / "long/timeline.csv")
    # a clip of 8 frames, 3 apart, spans 0.96 s; the last window ends with the video
    starts = [*np.arange(0, 4.01, 0.5), 4.16]
    assert [float(row["start_s"]) for row in rows] == pytest.approx(starts)
    assert [float(row["end_s"]) for row in rows] == pytest.approx([start + 0.96 for start in starts])
    assert list(rows[0]) == ["start_s", "end_s", "top1", "p1", "top2", "p2"]
    numbers = np.load(tmp_path / "long/logits.npz")
    assert numbers["clip_logits"].shape == (10, 1, 10)
    probabilities = torch.from_numpy(numbers["logits"]).softmax(dim=-1)
    assert [float(row["p1"]) for row in rows] == pytest.approx(probabilities.max(dim=1).values.tolist(), abs=1e-6)
    segments = rows_of(tmp_path / "long/segments.csv")
    assert float(segments[0]["start_s"]) == 0.0 and float(segments[-1]["end_s"]) == 5.12
    for before, after in zip(segments, segments[1:], strict=False):
        assert before["end_s"] == after["start_s"] and before["class"] != after["class"]
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert found["windows"] == {"stride": 0.5, "length": None, "smooth": 1, "threshold": 0.0}
    (video,) = found["videos"]
    assert (video["seconds"], video["windows"], len(video["segments"])) == (5.12, 10, len(segments))
    assert rows_of(tmp_path / "predictions.csv")[0]["class"] == segments[0]["class"]
    assert read_metadata(str(tmp_path / "long/labeled.mp4")).num_frames == 128


def test_smoothing_a_length_and_a_threshold(run, long_video, tmp_path):
    asked = ["windows.stride=1", "windows.length=2", "windows.smooth=3", "windows.threshold=1"]
    predicted(f"checkpoint={run}", f"videos={long_video}", f"out={tmp_path}", *asked)
    assert len(rows_of(tmp_path / "long/timeline.csv")) == 5
    assert rows_of(tmp_path / "long/segments.csv") == []  # nothing is that certain


def test_part_of_a_video_that_cannot_be_read_leaves_a_gap(run, long_video, tmp_path, capsys):
    video = read_metadata(str(long_video))
    damaged = tmp_path / "damaged.mp4"
    shutil.copy(long_video, damaged)
    first = int(video.packets.starts[0]) if len(video.packets.starts) == 1 else int(video.packets.starts[-1])
    at = max(first, 100)
    with open(damaged, "r+b") as file:
        for number in range(at, len(video.packets.positions)):
            file.seek(int(video.packets.positions[number]))
            file.write(bytes(int(video.packets.sizes[number])))
    with pytest.raises(SystemExit) as ended:
        predicted(
            f"checkpoint={run}",
            f"videos={damaged}",
            f"out={tmp_path / 'o'}",
            "windows.stride=0.5",
            "batch_size=2",
        )
    assert ended.value.code == 1
    rows = rows_of(tmp_path / "o/damaged/timeline.csv")
    assert len(rows) == 10 and rows[0]["top1"] and not rows[-1]["top1"]
    (failure,) = rows_of(tmp_path / "o/failures.csv")[-1:]
    assert float(failure["start"]) >= 2 and float(failure["end"]) == pytest.approx(5.12)
    assert float(rows_of(tmp_path / "o/damaged/segments.csv")[-1]["end_s"]) < 5


# --- pictures ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("heat", ["attention", "grad_cam", "none"])
def test_a_sheet_and_a_labeled_video(run, test_split, tmp_path, heat):
    predicted(f"checkpoint={run}", f"videos={test_split[2]}", f"out={tmp_path}", "render=true", f"heat={heat}")
    folder = tmp_path / Path(test_split[2]).stem
    assert {path.name for path in folder.iterdir()} == {"sheet.png", "labeled.mp4"}
    assert Image.open(folder / "sheet.png").width > 1500
    made = read_metadata(str(folder / "labeled.mp4"))
    assert (made.num_frames, made.width, made.height) == (32, 240, 240 + 10 + 126)
    np.testing.assert_allclose(made.timestamps, np.arange(32) / 25, atol=1e-4)


@pytest.mark.slow
def test_pictures_do_not_change_the_answer(run, test_split, tmp_path):
    for name, more in (("plain", []), ("drawn", ["render=true", "heat=grad_cam", "heat_class=grow"])):
        predicted(f"checkpoint={run}", f"videos={test_split[2]}", f"out={tmp_path / name}", "logits=true", *more)
    plain, drawn = (
        np.load(tmp_path / name / Path(test_split[2]).stem / "logits.npz")["clip_logits"] for name in ("plain", "drawn")
    )
    np.testing.assert_array_equal(plain, drawn)


@pytest.mark.slow
def test_a_graph_is_drawn_without_heat_and_says_so(graph, test_split, tmp_path, capsys):
    call = [
        f"checkpoint={graph}",
        f"videos={test_split[0]}",
        f"out={tmp_path}",
        "render=true",
    ]
    predicted(*call)
    assert "render=true draws no heat map: an exported graph gives logits alone" in " ".join(
        capsys.readouterr().err.split()
    )
    assert (tmp_path / Path(test_split[0]).stem / "sheet.png").is_file()
    with pytest.raises(UserError, match="heat=attention .*: an exported graph"):
        predicted(*call, "heat=attention")


# --- mistakes ---------------------------------------------------------------------------------------------


def test_every_mistake_of_a_call_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    found = faults(
        "checkpoint=absent", f"videos=[{tmp_path},gone.mp4]", "format=jsn", "topk=0", "heat=gradcam", "precision=fp8",
        "fusion=mean", "windows.smooth=2", "windows.stride=0", "heat_class=run", f"out={tmp_path}/file", "crops=0",
        "decode_timeout_s=0",
    )  # fmt: skip
    for words in (
        "checkpoint: absent: there is no such file or folder",
        f"videos: {tmp_path}: there are no videos in this folder",
        "videos: gone.mp4: there is no such file or folder",
        "format: jsn is unknown; did you mean json?",
        "topk: 0 must be 1 or more",
        "heat: gradcam is unknown; did you mean grad_cam?",
        "precision: fp8 is unknown; known: fp32, bf16, fp16",
        "fusion: mean is unknown",
        "windows.smooth: 2 must be an odd number",
        "windows.stride: 0.0 must be above 0 seconds",
        "heat_class: has no effect without render=true",
        f"out: {tmp_path}/file is a file: name a folder",
        "crops: 0 must be 1 or more",
        "decode_timeout_s: 0.0 must be above 0",
    ):
        assert sum(words in fault for fault in found) == 1, (words, found)
    assert len(found) == 14


def test_a_run_among_the_videos_is_taken_for_the_checkpoint_that_is_missing(tmp_path):
    (tmp_path / "run.json").touch()
    (found,) = faults(f"videos=[{tmp_path},gone.mp4]")
    assert found.startswith("checkpoint: must be given: ") and f"checkpoint={tmp_path}" in found


def test_what_must_be_given_and_what_has_no_effect(tmp_path):
    assert [fault.split(":")[0] for fault in faults()] == ["checkpoint", "videos"]
    found = faults(f"checkpoint={tmp_path}", "videos=[]", "windows.length=2", "out=a.json", "render=true")
    assert "is a folder, but no run's folder" in found[0] and found[1] == "videos: the list is empty"
    assert "out: a.json is one file, and render give several" in found[2]
    assert found[3] == "windows.length: has no effect without windows.stride"


def test_a_class_or_a_heat_map_that_the_model_does_not_have(run, test_split, tmp_path):
    call = [f"checkpoint={run}", f"videos={test_split[0]}", f"out={tmp_path}", "render=true"]
    with pytest.raises(UserError, match="heat_class=grew .*; did you mean grow?"):
        predicted(*call, "heat_class=grew")
    assert not list(tmp_path.iterdir())
    classes, path = ("ab", "caf\u00e9"), Path("best.pt")
    assert class_number("cafe\u0301", classes, path) == class_number(" caf\u00e9\u200b", classes, path) == 1
    with pytest.raises(UserError, match="heat_class=.*best.pt"):
        class_number("a\u200db", classes, path)


def test_a_checkpoint_that_was_cut_down(run, test_split, tmp_path):
    payload = checkpoint.load(run / "checkpoints/best.pt")
    checkpoint.save({key: value for key, value in payload.items() if key != "classes"}, tmp_path / "cut.pt")
    with pytest.raises(UserError, match="lacks classes"):
        predicted(f"checkpoint={tmp_path / 'cut.pt'}", f"videos={test_split[0]}")
    no_model = changed(run, tmp_path / "bare.pt", augmentation=None)
    with pytest.raises(SystemExit) as ended:
        predicted(f"checkpoint={no_model}", f"videos={test_split[0]}")
    assert ended.value.code == 2


def test_uniform_clips_have_no_length_of_their_own(run, test_split, tmp_path, capsys):
    config = torch.load(run / "checkpoints/best.pt", weights_only=True)["config"]
    file = changed(run, tmp_path / "uniform.pt", clip=config["clip"] | {"sampling": "uniform", "frame_step": None})
    call = [f"checkpoint={file}", f"videos={test_split[0]}", f"out={tmp_path / 'out'}", "windows.stride=0.5"]
    with pytest.raises(SystemExit) as ended:
        predicted(*call)
    assert ended.value.code == 2 and "windows.length: must be given" in capsys.readouterr().err
    predicted(*call, "windows.length=0.5")
    assert len(rows_of(tmp_path / "out" / Path(test_split[0]).stem / "timeline.csv")) == 3


def test_files_may_stand_bare_on_the_command_line(tmp_path):
    file = tmp_path / "it's = odd.mp4"
    file.touch()
    given = ["checkpoint=run", str(file), "folder/*.mp4", "topk=3"]
    *rest, videos = positional_to_override(given, "videos")
    assert rest == ["checkpoint=run", "topk=3"]
    assert list(config_of("predict", *rest, videos).videos) == [str(file), "folder/*.mp4"]
    assert positional_to_override(["checkpoint=run", "videos=a.mp4"], "videos") == [
        "checkpoint=run",
        "videos=a.mp4",
    ]
    with pytest.raises(UserError, match="given twice, by videos= and by b.mp4"):
        positional_to_override(["videos=a.mp4", "b.mp4"], "videos")
