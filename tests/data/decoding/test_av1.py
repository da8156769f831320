"""AV1 pictures that nothing refers to: told from their headers, and left out without a trace."""

import av
import numpy as np
import pytest

from vidtrain.data.decoding.headers import has_layers, leaves_nothing
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.packets import decode_frames

# The beginnings of what SVT-AV1 wrote; a header needs no more
CONFIGURATION = bytes.fromhex("81000c000a0b000000043cfecc02f80040")
LEAF = bytes.fromhex("320e30020009256d3a40000000800002")  # inter frame, refresh_frame_flags 0
REFERENCE = bytes.fromhex("320e30040209256d7a3b8000009f7802")  # refresh_frame_flags 8
SHOWN_AGAIN = bytes.fromhex("1a01f8")  # a frame header with show_existing_frame


class TestHeaders:
    @pytest.mark.parametrize(
        ("packet", "expected"),
        [
            (LEAF, True),
            (LEAF + LEAF, True),
            (REFERENCE, False),
            (REFERENCE + LEAF, False),
            (SHOWN_AGAIN, False),
            (CONFIGURATION[4:] + LEAF, False),  # a sequence header in the packet
            (LEAF[:5], False),
            (b"", False),
        ],
        ids=["leaf", "leaves", "reference", "both", "shown again", "sequence", "cut short", "empty"],
    )
    def test_a_packet(self, packet, expected):
        assert leaves_nothing(packet, CONFIGURATION) is expected
        assert leaves_nothing(packet, CONFIGURATION[4:]) is expected  # as units alone

    def test_without_a_sequence_header_it_cannot_be_told(self):
        assert not leaves_nothing(LEAF, b"")
        assert not leaves_nothing(LEAF, CONFIGURATION[:4])
        assert not has_layers(b"") and not has_layers(CONFIGURATION[:8])

    def test_layers(self):
        bits = "".join(f"{byte:08b}" for byte in CONFIGURATION[6:])
        assert bits[7:12] == "00000"  # operating_points_cnt_minus_1
        bits = bits[:7] + "00001" + "0" * 17 + bits[12:] + "0" * 7  # another one in front, of 12 bits and 5
        header = int(bits, 2).to_bytes(len(bits) // 8, "big")
        layered = CONFIGURATION[:4] + bytes([0x0A, len(header)]) + header
        assert has_layers(layered) and not has_layers(CONFIGURATION)
        assert leaves_nothing(LEAF, layered) and not leaves_nothing(REFERENCE, layered)


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="this FFmpeg has no encoder for AV1")
@pytest.mark.parametrize(("name", "structure", "least"), [("random_access.mp4", 2, 8), ("low_delay.webm", 1, 20)])
def test_frames_are_exact_without_them(tmp_path, name, structure, least, write_video, patches):
    options = {"preset": "10", "crf": "40", "svtav1-params": f"pred-struct={structure}:lp=1:keyint=24"}
    path = write_video(tmp_path / name, patches(49, 128, 96), "libsvtav1", options)
    video = read_metadata(path)
    assert video.packets.disposable.sum() >= least
    with av.open(path) as container:
        every = [frame.to_ndarray() for frame in container.decode(video=0)]
    rng = np.random.default_rng(0)
    for _ in range(12):
        step = int(rng.integers(2, 8))
        wanted = list(range(int(rng.integers(0, 8)), 49, step))
        found = dict(decode_frames(path, video.packets, wanted))
        assert sorted(found) == wanted
        assert all(np.array_equal(frame.to_ndarray(), every[index]) for index, frame in found.items())
