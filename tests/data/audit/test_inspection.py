"""One file at a time: what is read off sound ones, and what is said of broken ones."""

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidtrain.data.audit.duplicates import MAX_DISTANCE, Signature, distance, near_duplicates
from vidtrain.data.audit.inspection import inspect_video
from vidtrain.data.decoding.index import VideoIndex


def look(path, **places):
    return inspect_video(str(path), None, places.get("index"), places.get("thumbnails"))


def apart(first, second):
    return distance(Signature.from_text(first.signature), Signature.from_text(second.signature))


def kinds(found):
    return [kind for kind, _ in found.issues]


@pytest.fixture
def sound(tmp_path, write_video, patches):
    return write_video(tmp_path / "sound.mp4", patches(50), container_options={"movflags": "faststart"}, b_frames=0)


def test_a_sound_file(sound, tmp_path):
    (tmp_path / "pictures").mkdir()
    index = tmp_path / "index.sqlite"
    found = look(sound, index=index, thumbnails=tmp_path / "pictures")
    assert (found.cause, found.issues, found.num_frames, found.stated_frames) == ("", (), 50, 50)
    assert (found.width, found.height, found.rotation) == (96, 64, 0)
    assert (found.duration, found.rate, found.codec, found.pixel_format) == (2.0, 25.0, "h264", "yuv420p")
    assert (found.audio, found.size, len(Signature.from_text(found.signature))) == (
        False,
        os.path.getsize(sound),
        32,
    )
    assert VideoIndex(index)._read((sound, *_stamp(sound))) is not None  # later runs start warm
    with av.open(str(tmp_path / "pictures" / found.thumbnail)) as picture:
        image = next(picture.decode(video=0)).to_ndarray(format="rgb24")
    with av.open(sound) as container:
        middle = list(container.decode(video=0))[25].to_ndarray(format="rgb24", width=160, height=108)
    assert image.shape == (108, 160, 3)
    assert np.abs(image.astype(int) - middle).mean() < 12


def _stamp(path):
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def test_the_digest_is_that_of_the_bytes(sound, tmp_path):
    copy = tmp_path / "copy.mkv"  # wrong suffix: what is in the file counts
    copy.write_bytes(Path(sound).read_bytes())
    assert look(copy) == look(sound)


def test_rotation_is_undone_before_hashing(tmp_path, write_video, patches):
    upright = look(write_video(tmp_path / "a.mp4", patches(20)))
    turned = [frame.to_ndarray(format="rgb24") for frame in patches(20)]
    for degrees in (90, 180, 270):
        # pixels turned clockwise, and a note to turn them back
        frames = [
            av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(image, -degrees // 90)), format="rgb24")
            for image in turned
        ]
        frames = [frame.reformat(format="yuv420p") for frame in frames]
        found = look(write_video(tmp_path / f"{degrees}.mp4", frames, rotation=degrees))
        assert (found.width, found.height, found.rotation) == (96, 64, degrees)
        bits, levels = apart(upright, found)
        assert bits < 3 and levels < 3


def test_altered_copies_are_near_and_other_videos_are_not(tmp_path, write_video, patches):
    first = look(write_video(tmp_path / "first.mp4", patches(60)))
    small = [frame.reformat(width=48, height=48) for frame in patches(60)]
    copies = [
        write_video(tmp_path / "coarse.mp4", patches(60), options={"crf": "40"}),
        write_video(tmp_path / "small.mp4", small),
        write_video(tmp_path / "trimmed.mp4", patches(60)[17:]),
    ]
    for copy in copies:
        found = look(copy)
        assert len(near_duplicates([Signature.from_text(each.signature) for each in (first, found)])) == 1
        assert found.digest != first.digest
    upside_down = [frame.to_ndarray(format="rgb24")[::-1] for frame in patches(60)]
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(each), format="rgb24") for each in upside_down]
    other = look(write_video(tmp_path / "other.mp4", [each.reformat(format="yuv420p") for each in frames]))
    assert apart(first, other)[0] > 1.5 * MAX_DISTANCE


def test_a_file_cut_short(sound, tmp_path):
    data = Path(sound).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 6 // 10])
    found = look(cut)
    # either a reader that passes over errors sees a part of it, or what could not be read is said
    assert "of 50 frames" in (found.cause or found.issues[0][1])
    cut.write_bytes(data[:400])
    assert look(cut).cause


def test_flipped_bits_are_damage(sound, tmp_path):
    data = bytearray(Path(sound).read_bytes())
    rng = random.Random(0)
    for place in rng.sample(range(len(data) // 2, len(data)), 30):
        data[place] ^= 1 << rng.randrange(8)
    flipped = tmp_path / "flipped.mp4"
    flipped.write_bytes(data)
    found = look(flipped)
    assert found.cause or kinds(found) == ["damaged"]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "the file is empty"),
        (b"no video\n" * 99, "Invalid data found when processing input"),
        (bytes(5000), "Invalid data found when processing input; moov atom not found"),
    ],
)
def test_what_is_no_video(tmp_path, data, cause):
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    found = look(path)
    assert found.cause.startswith(cause)
    assert (found.size, found.num_frames, len(found.digest)) == (len(data), 0, 32)


def test_what_is_no_file(tmp_path):
    (tmp_path / "x.mp4").mkdir()
    assert look(tmp_path / "x.mp4").cause == "not a file"
    assert look(tmp_path / "none.mp4").cause == "No such file or directory"


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert look(path).cause == "it has no video stream"


def test_uneven_and_odd_rates(tmp_path, write_video, patches):
    uneven = look(
        write_video(tmp_path / "a.mp4", patches(12), times=[0, 40, 80, 120, 400, 440, 480, 520, 560, 600, 640, 680])
    )
    assert uneven.issues == (("variable rate", "40 to 280 ms from frame to frame, mostly 40"),)
    fast = look(write_video(tmp_path / "b.mp4", patches(12), times=range(0, 24, 2)))
    assert ("rate", "500 frames/s") in fast.issues


def test_uniform_pictures(tmp_path, write_video):
    black = [av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24") for _ in range(5)]
    found = look(write_video(tmp_path / "a.mp4", [each.reformat(format="yuv420p") for each in black]))
    assert (kinds(found), found.signature) == (["no contrast"], "")


def test_what_is_sound_but_not_what_models_know(tmp_path, patches):
    """Pixels that are not square, two fields in a frame, and brightness that no common display shows."""

    def written(name: str, options: dict[str, str], **settings) -> str:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for key, value in settings.items():
                setattr(stream.codec_context, key, value)
            for number, frame in enumerate(patches(6)):
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return str(tmp_path / name)

    wide = look(written("wide.mp4", {}, sample_aspect_ratio=Fraction(16, 11)))
    assert wide.issues == (("non-square pixels", "96x64 pixels of 16:11, shown as 140x64"),)
    assert (wide.width, wide.height, wide.sample_aspect) == (96, 64, "16:11")
    assert look(written("fields.mp4", {"x264-params": "interlaced=1"})).issues == (("interlaced", "6 of 6 frames"),)
    for transfer, name in ((16, "PQ (SMPTE ST 2084)"), (18, "HLG (ARIB STD-B67)")):
        assert look(written("hdr.mp4", {}, color_trc=transfer)).issues == (("HDR", name),)
    plain = look(written("plain.mp4", {}, color_trc=1, sample_aspect_ratio=Fraction(1)))
    assert (plain.issues, plain.sample_aspect) == ((), "1:1")


def test_a_folder_of_images(tmp_path, patches):
    (tmp_path / "v").mkdir()
    for number, frame in enumerate(patches(6)):
        frame.save(tmp_path / "v" / f"{number}.png")
    found = inspect_video(str(tmp_path / "v"), 12.0, None, None)
    assert (found.cause, found.issues, found.num_frames, found.rate, found.duration) == ("", (), 6, 12.0, 0.5)
    assert (found.container, found.codec, len(Signature.from_text(found.signature))) == ("images", "png", 6)
    (tmp_path / "v" / "3.png").write_bytes(b"broken")
    found = inspect_video(str(tmp_path / "v"), 12.0, None, None)
    assert (found.num_frames, kinds(found)) == (5, ["damaged"])
    assert "3.png" in found.issues[0][1]


def test_the_odd_and_broken_files_at_hand(shared_data):
    """Against what a full decode of each gave, by another program."""
    clips = shared_data / "clips"
    expected = {
        "decord/tests/test_data/corrupted.mp4": ("", ["damaged"]),
        "decord/tests/test_data/video_90.mov": ("", []),
        "mmaction2/tests/data/test.avi": ("", []),
        "libwebm/testing/testdata/invalid/block_ends_beyond_cluster.mkv": ("", ["truncated", "no contrast"]),
        "gpac-testsuite/media/auxiliary_files/enst_video.h264": ("", ["times"]),
        "gpac-testsuite/oss-fuzzers/fuzz_parse_corpus/france.mp4": ("it has no video stream", []),
        "moviepy/media/doc_medias/result.webm": ("the file is empty", []),
    }
    found = {path: look(clips / path) for path in expected}
    assert {path: (each.cause, kinds(each)) for path, each in found.items()} == expected
    assert found["decord/tests/test_data/video_90.mov"].rotation == 270
    assert found["mmaction2/tests/data/test.avi"].num_frames == 164
