"""One bit of a keyframe flipped: no frame that the decoder made up is given out, and all others are."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from vidtrain.data.audit.inspection import inspect_video
from vidtrain.data.augment.geometry import CenterCrops, Crop, RandomResizedCrop
from vidtrain.data.decoding import packets
from vidtrain.data.decoding.decoder import all_frames, decode_views, read_frames, refused_frames
from vidtrain.data.decoding.metadata import read_image_folder, read_metadata
from vidtrain.data.decoding.video import DecodeError, VideoInfo
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file
from vidtrain.data.sampling.clips import ClipProtocol

COUNT = 48  # frames: four groups of 12
X264 = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2", "preset": "veryfast"}
X265 = {
    "x265-params": "keyint=12:min-keyint=12:scenecut=0:bframes=2:log-level=none:pools=1",
    "preset": "ultrafast",
}


def coded(path: str) -> list[tuple[bool, int, list[int]]]:
    """The packets as (keyframe, time, where its bytes lie in the file); containers may put their own between them."""
    data, found = Path(path).read_bytes(), []
    with av.open(path) as container:
        for packet in (each for each in container.demux(video=0) if each.size):
            body, positions = bytes(packet), []
            for at in range(0, len(body), 32):
                place = data.find(body[at : at + 32])
                positions += range(place, place + len(body[at : at + 32])) if place >= 0 else []
            found.append((packet.is_keyframe, packet.pts, positions))
    return found


def flipped(path: str, target: Path, position: int, bit: int) -> str:
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 1 << bit
    target.write_bytes(data)
    return str(target)


def damaged_copies(path: str, folder: Path, count: int) -> Iterator[str]:
    """Copies with one bit flipped each, somewhere in a keyframe but the first."""
    rng, keys = random.Random(0), [positions for key, _, positions in coded(path) if key]
    for number in range(count):
        where = rng.choice(rng.choice(keys[1:] or keys)), rng.randrange(8)
        yield flipped(path, folder / f"{number}{Path(path).suffix}", *where)


def in_order(path: str) -> tuple[list[np.ndarray], bool]:
    """All frames as the container's decoder gives them, errors passed over; whether it owned up to damage."""
    frames, owned_up = [], False
    with av.open(path) as container:
        decoder, stream = container.streams.video[0].codec_context, container.demux(video=0)
        decoder.thread_type, decoder.thread_count = "NONE", 1
        for packet in stream:
            try:
                for frame in decoder.decode(packet):
                    frames.append(frame.to_ndarray())
                    owned_up |= frame.is_corrupt
            except EOFError:
                break
            except av.FFmpegError:
                owned_up = True
    return frames, owned_up


def alone(video: VideoInfo, index: int) -> np.ndarray | None:
    """A frame read alone; None where it is refused."""
    try:
        return dict(read_frames(video, [index]))[index].to_ndarray()
    except DecodeError as error:
        assert "damaged" in error.cause
        return None


@pytest.mark.slow
def test_single_reads_of_30_damaged_files(tmp_path, write_video, patches):
    """Four of five gave frames that differ from reading in order, by up to 201 levels, without a word."""
    sound = write_video(tmp_path / "sound.mp4", patches(COUNT, 192, 128), options=X264)
    silent = owning_up = 0
    refused = set()
    for path in damaged_copies(sound, tmp_path, 30):
        (expected, says_so), video = in_order(path), read_metadata(path)
        assert len(expected) == video.num_frames == COUNT
        found = {index: alone(video, index) for index in (0, 13, 17, 25, 31, 35, 37, 44)}
        silent += any(pixels is not None and (pixels != expected[index]).any() for index, pixels in found.items())
        owning_up += says_so
        if says_so:
            refused.add(sum(pixels is None for pixels in found.values()))
        else:
            assert all(pixels is not None for pixels in found.values())
    assert silent == 0
    assert owning_up > 15
    assert refused == {2, 3}  # those of the damaged group of 12 alone


CODECS = {
    "mpegts.ts": ("libx264", X264),
    "cavlc.mkv": ("libx264", {"x264-params": X264["x264-params"] + ":cabac=0", "preset": "veryfast"}),
    "avi.avi": ("mpeg4", {"b": "400k"}),
    "program.mpg": ("mpeg2video", {"b": "600k", "bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "300k"}),
    "av1.mkv": ("libsvtav1", {"preset": "10"}),
}


@pytest.mark.parametrize("name", CODECS)
def test_what_decoders_own_up_to(tmp_path, write_video, patches, name):
    codec, options = CODECS[name]
    sound = write_video(tmp_path / name, patches(COUNT, 192, 128), codec, options)
    whole = Crop(0, 0, 192, 128)
    assert refused_frames(read_metadata(sound)) == []
    for path in damaged_copies(sound, tmp_path, 6):
        (_, says_so), video = in_order(path), probe_or_none(path)
        if video is None:  # nothing of it is read, and the file is named
            assert says_so
            continue
        refused = refused_frames(video)
        assert bool(refused) == says_so
        for index in {*refused[:1], *refused[-1:]}:
            with pytest.raises(DecodeError, match="damaged"):
                decode_views(video, [(np.array([index]), whole)], (8, 8))
        rest = sorted(set(range(video.num_frames)) - set(refused))
        decode_views(video, [(np.array(rest), whole)], (8, 8))


def probe_or_none(path: str) -> VideoInfo | None:
    try:
        return read_metadata(path)
    except DecodeError:
        return None


def test_a_decoder_that_only_logs(tmp_path, write_video, patches):
    """FFmpeg's HEVC decoder marks no frame; what it says of a damaged one is heard, the second time too."""
    sound = write_video(tmp_path / "sound.mp4", patches(COUNT, 192, 128), "libx265", X265)
    positions = [positions for key, _, positions in coded(sound) if key][2]
    assert refused_frames(read_metadata(sound)) == []
    for position in positions[len(positions) // 4 :]:
        path = flipped(sound, tmp_path / "damaged.mp4", position, 3)
        if refused := refused_frames(read_metadata(path)):
            break
    assert 24 in refused and set(refused) <= set(range(20, 36))  # what leads its group may refer to it too
    for _ in range(2):
        assert [alone(read_metadata(path), index) is None for index in (0, 12, 24, 35, 36)] == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_pictures_that_refer_to_a_damaged_one(tmp_path, write_video, patches, suffix):
    """The two B pictures before it too, and nothing of the group before or after."""
    sound = write_video(tmp_path / f"sound.{suffix}", patches(36, 192, 128), options=X264 | {"bf": "2"})
    with av.open(sound) as container:
        shown = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    place = 15 + shown[15:].index("P")  # shown in the second group
    before = max(n for n in range(place) if shown[n] != "B")
    packets_shown = sorted(coded(sound), key=lambda packet: packet[1])
    for position in packets_shown[place][2][40:]:
        path = flipped(sound, tmp_path / f"damaged.{suffix}", position, 5)
        if refused := refused_frames(read_metadata(path)):
            break
    assert place - before > 1 and refused == list(range(before + 1, 24))


def test_a_start_that_is_none_is_read_in_order(tmp_path, write_video, patches, monkeypatch):
    """Where decoding from a start makes up pictures, and in order does not, those of the latter are given out."""
    video = read_metadata(write_video(tmp_path / "video.mp4", patches(COUNT, 192, 128), options=X264))
    table = video.packets
    false = int(table.order[18])  # within a group
    starts = np.unique([*table.starts, false]).astype(np.int32)
    lying = replace(video, packets=replace(table, starts=starts, disposable=np.zeros_like(table.disposable)))
    runs = []
    decoding = packets.decode_numbers

    def counted(decoder, numbers, *rest):
        runs.append(list(numbers))
        return decoding(decoder, numbers, *rest)

    monkeypatch.setattr(packets, "decode_numbers", counted)
    expected = decode_views(video, [(np.array([22]), Crop(0, 0, 192, 128))], (128, 192))
    assert decode_views(lying, [(np.array([22]), Crop(0, 0, 192, 128))], (128, 192)).equal(expected)
    assert [run[0] for run in runs[-2:]] == [false, 0]


def test_damage_ends_a_rendered_copy(tmp_path, write_video, patches):
    sound = write_video(tmp_path / "sound.mp4", patches(COUNT, 192, 128), options=X264)
    path = next(each for each in damaged_copies(sound, tmp_path, 60) if refused_frames(read_metadata(each)))
    with pytest.raises(DecodeError, match="damaged"):
        list(all_frames(read_metadata(path), (64, 96)))


def test_images(tmp_path, patches):
    """Each image stands for itself: one that was cut is refused, which FFmpeg's JPEG decoder makes gray and only
    logs."""
    for number, frame in enumerate(patches(4)):
        frame.save(str(tmp_path / f"{number}.jpg"))
    video = read_image_folder(str(tmp_path), 10.0)
    assert refused_frames(video) == []
    assert len(decode_views(video, [(np.arange(4), Crop(0, 0, 96, 64))], (8, 8))) == 1
    cut = tmp_path / "2.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    assert refused_frames(video) == [2]
    assert len(decode_views(video, [(np.array([0, 1, 3]), Crop(0, 0, 96, 64))], (8, 8))) == 1
    with pytest.raises(DecodeError, match=r"2\.jpg: the picture is damaged"):
        decode_views(video, [(np.arange(4), Crop(0, 0, 96, 64))], (8, 8))
    found = inspect_video(str(tmp_path), 10.0, None, None)
    ((kind, words),) = found.issues
    assert kind == "damaged" and "refused with those that depend on them: 1 of 4" in words
    job = Job(str(tmp_path), tmp_path / "copy.mp4", EncodeSettings(64, 12, 2, 20, "veryfast"), 10.0)
    assert prepare_file(job).cause == f"cannot read video {cut}: the picture is damaged"


@pytest.mark.parametrize("suffix", ["avi", "mov"])
def test_damage_in_motion_jpeg(tmp_path, write_video, patches, suffix):
    sound = write_video(tmp_path / f"sound.{suffix}", patches(12, 192, 128, "yuvj420p"), "mjpeg")
    assert refused_frames(read_metadata(sound)) == []
    positions = coded(sound)[5][2]
    data = bytearray(Path(sound).read_bytes())
    for position in positions[len(positions) // 2 :][:40]:
        data[position] = 0
    damaged = tmp_path / f"damaged.{suffix}"
    damaged.write_bytes(data)
    video = read_metadata(str(damaged))
    assert refused_frames(video) == [5]
    assert [alone(video, index) is None for index in (4, 5, 6)] == [False, True, False]


def test_audit_and_prepare_say_the_same(tmp_path, write_video, patches):
    """The audit counts what readers refuse; no copy is made of what a decoder made up."""
    sound = write_video(tmp_path / "sound.mp4", patches(COUNT, 192, 128), options=X264)
    for path in damaged_copies(sound, tmp_path, 60):
        if len(refused := refused_frames(read_metadata(path))) == 12:
            break
    found = inspect_video(path, None, None, None)
    assert found.cause == ""
    ((kind, words),) = [issue for issue in found.issues if issue[0] == "damaged"]
    assert "partly made up: 1, refused with those that depend on them: 12 of 48" in words
    target = tmp_path / "copy.mp4"
    made = prepare_file(Job(path, target, EncodeSettings(64, 12, 2, 20, "veryfast"), None))
    assert made.cause == f"frame {refused[0]} is damaged: the decoder made up pixels that it could not read"
    assert not target.exists()


def test_training_and_evaluation_miss_what_is_damaged(tmp_path, write_video, patches):
    """In training another video is drawn, in evaluation none is; both name the file and say why."""
    sound = write_video(tmp_path / "sound.mp4", patches(COUNT, 192, 128), options=X264)
    path = next(each for each in damaged_copies(sound, tmp_path, 60) if refused_frames(read_metadata(each)))
    records = [Record(each, label, each) for label, each in enumerate((path, sound))]
    manifest = Manifest(records, ("a", "b"))
    whole = ClipProtocol(COUNT, frame_step=1)
    evaluation = VideoDataset(manifest, whole, CenterCrops(), (64, 64), 0, False)
    missed, read = (evaluation[SampleKey(0, index)] for index in (0, 1))
    assert missed.clips is None and read.clips is not None and read.faults == []
    crop = RandomResizedCrop()
    drawn = VideoDataset(manifest, whole, crop, (64, 64), 0, True, 9)[SampleKey(0, 0)]
    assert drawn.clips is not None and drawn.record == 1
    for fault in (missed.faults[0], drawn.faults[0]):
        assert fault.path == path and "are damaged: the decoder made up pixels that it could not read" in fault.cause
