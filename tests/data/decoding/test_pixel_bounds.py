"""A file that claims enormous pictures costs no memory, whatever opens it."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from vidtrain.data.audit.inspection import inspect_video
from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.metadata import read_image_folder, read_metadata
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file

SIDE = 16_000
SETTINGS = EncodeSettings(short_side=64, gop=12, b_frames=3, crf=20, preset="ultrafast")


def unsigned(*values: int) -> str:
    """Exponential Golomb codes."""
    codes = [f"{value + 1:b}" for value in values]
    return "".join("0" * (len(code) - 1) + code for code in codes)


def unit(kind: int, bits: str) -> bytes:
    """A NAL unit of H.264 with its start code."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    data, out, zeros = int(bits, 2).to_bytes(len(bits) // 8, "big"), bytearray(), 0
    for value in data:
        if zeros >= 2 and value <= 3:
            out.append(3)
            zeros = 0
        out.append(value)
        zeros = zeros + 1 if value == 0 else 0
    return b"\0\0\0\1" + bytes([0x60 | kind]) + bytes(out)


def huge_h264(path: Path, pictures: int = 40) -> str:
    """Raw H.264 of a few kilobytes: each picture says that it has SIDE x SIDE pixels, and breaks off."""
    blocks = SIDE // 16 - 1
    head = unit(7, f"{66:08b}{0:08b}{62:08b}" + unsigned(0, 0, 2, 16) + "0" + unsigned(blocks, blocks) + "1100")
    head += unit(8, unsigned(0, 0) + "00" + unsigned(0, 0, 0) + "000" + unsigned(0, 0, 0) + "000")
    slices = []
    for number in range(pictures):
        begin = unsigned(0, 7, 0) + "0000"  # first block, an intra slice, its parameters; frame number
        slices.append(unit(5, begin + unsigned(number % 2) + "00" + unsigned(0) + unsigned(3) * 100))
    path.write_bytes(head + b"".join(slices))
    return str(path)


def huge_png(path: Path) -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze = zlib.compressobj(9)
    data = b"".join(squeeze.compress(bytes(SIDE + 1)) for _ in range(SIDE)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return str(path)


def copied(source: str, path: Path) -> str:
    """The packets of `source` in another container, without a decoder."""
    with (
        av.open(source, options={"codec_whitelist": "none"}) as found,
        av.open(str(path), "w") as container,
    ):
        stream = found.streams.video[0]
        other = container.add_stream_from_template(stream)
        for number, packet in enumerate(found.demux(stream)):
            if packet.size:
                packet.pts = packet.dts = number * packet.time_base.denominator // 25
                packet.stream = other
                container.mux(packet)
    return str(path)


PROGRAM = """
import sys
from vidtrain.data.audit.inspection import inspect_video
from vidtrain.data.decoding.metadata import read_image_folder
from vidtrain.data.decoding.metadata import read_metadata

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before, seen = peak(), 0
for path in sys.argv[1:]:
    print(inspect_video(path, None, None, None).cause)
    if path.endswith(".png"):
        print(inspect_video(path.rpartition("/")[0], 25, None, None).cause)
print((peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's account of memory")
def test_enormous_pictures_take_no_memory(tmp_path):
    raw = huge_h264(tmp_path / "raw.h264")
    assert os.path.getsize(raw) < 5000
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [raw, *(copied(raw, tmp_path / f"a.{suffix}") for suffix in ("mp4", "mkv", "ts", "flv", "mpg"))]
    paths += [huge_png(folder / "1.png")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *paths], capture_output=True, text=True, timeout=100)
    *causes, megabytes = done.stdout.splitlines()
    assert causes == [f"its picture of {SIDE}x{SIDE} has more pixels than data.max_pixels=36000000"] * 8, (
        done.stdout + done.stderr
    )
    assert int(megabytes) < 60  # 4,000 and more without the bound


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.flv", "a.mpg", "motion.avi"])
def test_the_bound_holds_wherever_a_file_is_opened(tmp_path, name, write_video, patches):
    codec = {"a.mpg": "mpeg2video", "motion.avi": "mjpeg"}.get(name, "libx264")
    frames = patches(6, pixel_format="yuvj420p" if codec == "mjpeg" else "yuv420p")
    path = write_video(tmp_path / name, frames, codec)
    words = "its picture of 96x64 has more pixels than data.max_pixels=6143"
    assert read_metadata(path, 6144).num_frames == 6
    for read in (lambda: read_metadata(path, 6143), lambda: VideoIndex(None, 6143).info(path)):
        with pytest.raises(DecodeError, match=words):
            read()
    assert inspect_video(path, None, None, None, 6143).cause == words
    assert prepare_file(Job(path, tmp_path / "copy.mp4", SETTINGS, None, 6143)).cause == words
    known = tmp_path / "index.sqlite"
    assert VideoIndex(known).info(path).num_frames == 6
    with pytest.raises(DecodeError, match=words):  # of what is known from when more was allowed
        VideoIndex(known, 6143).info(path)
    assert VideoIndex(known, 6144).info(path).max_pixels == 6144


def test_images(tmp_path, patches):
    for number, frame in enumerate(patches(3)):
        size = (96, 64) if number < 2 else (400, 300)
        frame.to_image().resize(size).save(tmp_path / f"{number}.png")
    with pytest.raises(DecodeError, match="96x64 .*data.max_pixels=100"):
        read_image_folder(str(tmp_path), 25, 100)
    with pytest.raises(DecodeError, match="96x64 .*data.max_pixels=6143"):
        read_metadata(str(tmp_path / "1.png"), 6143)  # whose size is in no header that is read before
    video = read_image_folder(str(tmp_path), 25, 10_000)
    with pytest.raises(DecodeError, match="2.png: .*400x300 .*=10000"):
        decode_views(video, [(np.arange(3), Crop(0, 0, 96, 64))], (64, 96))


def test_many_streams_are_counted_together(tmp_path, patches):
    """Each is decoded a little to find out about it."""
    path = tmp_path / "many.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(6)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number, frame in enumerate(patches(3)):
            for stream in streams:
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert read_metadata(str(path), 9216).num_frames == 3
    with pytest.raises(DecodeError, match="6 video streams .*36864 .* 4 times"):
        read_metadata(str(path), 9215)
