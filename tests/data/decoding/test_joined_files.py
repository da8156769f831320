"""Files put together of several without encoding anew: the parameters of each part stand in mid-stream."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vidtrain.data.decoding.decoder import read_frames
from vidtrain.data.decoding.metadata import read_metadata

COUNT = 48  # frames of each part: four groups of 12, all but the first open
OPEN = "keyint=12:min-keyint=12:scenecut=0:bframes=2:open-gop=1"
PARTS = {
    # pictures of the second part decode with the parameters of the first too, without a word, to other colors
    "h264": ("libx264", ("x264-params", f"{OPEN}:chroma-qp-offset="), ("0", "6")),
    "hevc": ("libx265", ("x265-params", f"log-level=none:pools=1:{OPEN}:cbqpoffs=0:crqpoffs="), ("0", "6")),
}


def parameter_sets(codec: str, record: bytes) -> bytes:
    """Those of an avcC or hvcC record, each behind its length as in a packet."""
    found, at = b"", 5 if codec == "h264" else 23
    for mask in (31, 255) if codec == "h264" else [0] * record[22]:
        if codec == "h264":
            count, at = record[at] & mask, at + 1
        else:
            count, at = int.from_bytes(record[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2], "big")
            found += size.to_bytes(4, "big") + record[at + 2 : at + 2 + size]
            at += 2 + size
    return found


def joined(codec: str, parts: list[str], target: Path) -> str:
    """The packets of all `parts`; the first one of each later part carries its parameter sets."""
    with av.open(str(target), "w") as write:
        stream = None
        for number, part in enumerate(parts):
            with av.open(part) as read:
                source = read.streams.video[0]
                stream = stream or write.add_stream_from_template(source)
                own = parameter_sets(codec, source.codec_context.extradata) if number else b""
                for packet in (each for each in read.demux(source) if each.size):
                    copy = av.Packet(own + bytes(packet))
                    shift = number * int(COUNT / source.average_rate / source.time_base)
                    copy.pts, copy.dts = packet.pts + shift, packet.dts + shift
                    copy.time_base, copy.is_keyframe, copy.stream = (
                        packet.time_base,
                        packet.is_keyframe,
                        stream,
                    )
                    write.mux(copy)
                    own = b""
    return str(target)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("codec", PARTS)
def test_decoding_starts_where_the_parameters_are_known(tmp_path, write_video, patches, codec, suffix):
    encoder, (name, start), values = PARTS[codec]
    parts = [
        write_video(tmp_path / f"{value}.mp4", patches(COUNT), encoder, {name: f"{start}{value}"}, b_frames=2)
        for value in values
    ]
    video = read_metadata(joined(codec, parts, tmp_path / f"joined.{suffix}"))
    with av.open(video.path) as container:
        every = [frame.to_ndarray() for frame in container.decode(video=0)]
    # any group of the first part, and the beginning of the second, whose other groups carry no parameters
    assert len(every) == video.num_frames == 2 * COUNT
    assert video.packets.first_shown.tolist()[-1] == COUNT and len(video.packets.starts) == 5
    assert video.timestamps[COUNT] == pytest.approx(float(Fraction(COUNT, 25)), abs=0.002)
    for index in (30, COUNT, COUNT + 13, COUNT + 26, 2 * COUNT - 1):
        ((found, frame),) = read_frames(video, [index])
        assert found == index and np.array_equal(frame.to_ndarray(), every[index])
