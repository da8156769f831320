"""Streams of fields, written bit by bit, as no encoder at hand codes fields as pictures of their own."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 48, 64
FRAME_NUM_BITS = ORDER_BITS = 8
I_SLICE, P_SLICE = 7, 5
RAW_MACROBLOCK = 25  # mb_type I_PCM, in an I slice


class Writer:
    def __init__(self):
        self._bits: list[str] = []

    def number(self, value: int, bits: int) -> "Writer":
        self._bits.append(format(value, f"0{bits}b"))
        return self

    def golomb(self, *values: int) -> "Writer":
        for value in values:
            code = format(value + 1, "b")
            self._bits.append("0" * (len(code) - 1) + code)
        return self

    def bits(self, bits: str) -> "Writer":
        self._bits.append(bits)
        return self

    def align(self) -> "Writer":
        self._bits.append("0" * (-sum(map(len, self._bits)) % 8))
        return self

    def unit(self, header: int) -> bytes:
        """As a unit with a start code, and with emulation prevention bytes."""
        bits = "".join(self._bits) + "1"
        bits += "0" * (-len(bits) % 8)
        found = bytearray([header])
        for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
            if byte <= 3 and found[-2:] == b"\0\0":
                found.append(3)
            found.append(byte)
        return b"\0\0\0\1" + bytes(found)


def parameters() -> bytes:
    sequence = Writer().number(77, 8).number(0, 8).number(30, 8).golomb(0, FRAME_NUM_BITS - 4, 0, ORDER_BITS - 4, 2)
    sequence.number(0, 1).golomb(WIDTH // 16 - 1, HEIGHT // 32 - 1)
    sequence.number(0b0_0_1_0_0, 5)  # fields and frames, no pairs of macroblocks, direct_8x8, no cropping, no VUI
    # CAVLC; one reference; no weights; QP 26; deblocking stated in slices
    picture = Writer().golomb(0, 0).number(0, 2).golomb(0, 0, 0).number(0, 3).golomb(0, 0, 0).number(0b100, 3)
    return sequence.unit(0x67) + picture.unit(0x68)


def picture(
    planes: Sequence[np.ndarray] | None,
    number: int,
    order: int,
    parity: int,
    idr: bool = False,
    kept: bool = True,
) -> bytes:
    """A coded picture, of uncompressed `planes` (Y, Cb, Cr), or of skipped macroblocks where they are None.

    `parity` is 0 for a frame, 1 for a top and 2 for a bottom field; other pictures may refer to those that are `kept`.
    """
    lines = HEIGHT // (2 if parity else 1)
    bits = Writer().golomb(0, P_SLICE if planes is None else I_SLICE, 0).number(number, FRAME_NUM_BITS)
    bits.number(1 if parity else 0, 1)
    if parity:
        bits.number(parity - 1, 1)
    if idr:
        bits.golomb(0)
    bits.number(order, ORDER_BITS)
    if planes is None:
        bits.number(0, 2)  # as many references as ever, in the usual order
    if idr:
        bits.number(0, 2)
    elif kept:
        bits.number(0, 1)
    bits.golomb(0, 1)  # no change of QP, no deblocking
    if planes is None:
        bits.golomb(WIDTH // 16 * lines // 16)
    else:
        for top in range(0, lines, 16):
            for left in range(0, WIDTH, 16):
                bits.golomb(RAW_MACROBLOCK).align()
                for plane, size in zip(planes, (16, 8, 8), strict=True):
                    part = plane[top * size // 16 :, left * size // 16 :][:size, :size]
                    for value in part.ravel().tolist():
                        bits.number(value, 8)
    return bits.unit((0x60 if kept else 0) | (5 if idr else 1))


def fields(frames: int, group: int = 6) -> tuple[list[list[bytes]], list[np.ndarray]]:
    """A stream's pictures, a list of one (coded as a frame) or two (as fields) for each frame, and their luma.

    Every third frame is coded as a frame, every fourth is one that nothing refers to; the second field of a group's
    first frame repeats the first one, to which it refers.
    """
    rng = np.random.default_rng(0)
    pictures, lumas = [], []
    number = 0
    for frame in range(frames):
        planes = [rng.integers(1, 255, (HEIGHT // s, WIDTH // s), dtype=np.uint8) for s in (1, 2, 2)]
        idr, kept = frame % group == 0, frame % 4 != 3
        number, order = 0 if idr else number, 2 * (frame % group)
        parts = [parameters()] if idr else [b""]
        if frame % 3 == 2 and not idr:
            parts[0] += picture(planes, number, order, 0, idr, kept)
        else:
            parts[0] += picture([plane[::2] for plane in planes], number, order, 1, idr, kept)
            if idr:
                planes[0][1::2] = planes[0][::2]
                parts.append(picture(None, number, order + 1, 2))
            else:
                parts.append(picture([plane[1::2] for plane in planes], number, order + 1, 2, False, kept))
        number += kept
        pictures.append(parts)
        lumas.append(planes[0])
    return pictures, lumas


def muxed(
    path: Path, pictures: Sequence[Sequence[bytes]], apart: bool, sound: bool = False, bare: str = ".h264"
) -> str:
    """A file of the stream, each field in a packet of its own, or both together; 25 frames per second."""
    source = path.with_suffix(bare)
    source.write_bytes(b"".join(b"".join(parts) for parts in pictures))
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        target = write.add_stream_from_template(read.streams.video[0])
        audio = write.add_stream("pcm_s16le", rate=8000, layout="mono") if sound else None
        for number, parts in enumerate(pictures):
            for place, data in enumerate(parts if apart else [b"".join(parts)]):
                packet = av.Packet(data)
                packet.pts = packet.dts = 2 * number + place
                packet.duration = 1 if apart and len(parts) > 1 else 2
                packet.time_base, packet.stream = Fraction(1, 50), target
                packet.is_keyframe = number % 6 == 0 and place == 0
                write.mux(packet)
                if audio is not None:  # so that the fields of a frame do not lie side by side
                    tone = av.AudioFrame.from_ndarray(np.ones((1, 160), np.int16), format="s16", layout="mono")
                    tone.sample_rate, tone.pts = 8000, 320 * number + 160 * place
                    write.mux(audio.encode(tone))
    return str(path)


# --- MPEG-2: each field of one gray, 8 bits of difference to 128 in the first block of each row ----------------

DC_SIZES = (
    "100",
    "00",
    "01",
    "101",
    "110",
    "1110",
    "11110",
    "111110",
    "1111110",
)  # of luma, ISO/IEC 13818-2, B.12


def mpeg2_fields(frames: int, group: int = 6) -> tuple[list[list[bytes]], list[np.ndarray]]:
    """As `fields`: a frame's two pictures, and its luma."""
    pictures, lumas = [], []
    for frame in range(frames):
        grays = 20 + 8 * frame, 24 + 8 * frame
        parts = [mpeg2_picture(frame % group, structure, gray) for structure, gray in enumerate(grays, start=1)]
        if frame % group == 0:
            parts[0] = mpeg2_header() + parts[0]
        pictures.append(parts)
        lumas.append(np.tile(np.repeat(np.array(grays, np.uint8)[:, None], WIDTH, 1), (HEIGHT // 2, 1)))
    return pictures, lumas


def mpeg2_header() -> bytes:
    sequence = Writer().number(WIDTH, 12).number(HEIGHT, 12).number(0x13, 8).number(1000, 18)  # 25 frames per second
    extension = Writer().number(0x148, 12).number(0, 1).number(1, 2).number(0, 16).number(1, 1).number(0, 16)
    group = Writer().number(0, 25).number(0b10, 2)  # closed
    return (
        mpeg2_unit(0xB3, sequence.number(1, 1).number(20, 10).number(0, 3))
        + mpeg2_unit(0xB5, extension)
        + mpeg2_unit(0xB8, group)
    )


def mpeg2_picture(order: int, structure: int, gray: int) -> bytes:
    """An I picture; `structure` is 1 for a top and 2 for a bottom field."""
    header = Writer().number(order, 10).number(1, 3).number(0xFFFF, 16).number(0, 1)
    extension = Writer().number(0x8FFFF, 20).number(0, 2).number(structure, 2).number(0b01, 2).number(0, 8)
    data = mpeg2_unit(0, header) + mpeg2_unit(0xB5, extension)
    difference = gray - 128
    size = abs(difference).bit_length()
    for row in range(HEIGHT // 32):
        bits = Writer().number(2, 5).number(0, 1)
        for block in range(WIDTH // 16 * 6):
            bits.bits("11" if block % 6 == 0 else "")  # the next macroblock, intra
            if block == 0 and size:
                bits.bits(DC_SIZES[size]).number(difference if difference > 0 else difference + (1 << size) - 1, size)
            else:
                bits.bits(DC_SIZES[0] if block % 6 < 4 else "00")
            bits.bits("10")  # no more coefficients
        data += mpeg2_unit(row + 1, bits)
    return data


def mpeg2_unit(code: int, bits: Writer) -> bytes:
    text = "".join(bits.align()._bits)
    return bytes([0, 0, 1, code]) + int(text, 2).to_bytes(len(text) // 8, "big")
