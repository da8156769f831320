"""H.264 streams of fields, written bit by bit, as no encoder at hand codes fields as pictures of their own."""

from collections.abc import Sequence

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
    sequence = (
        Writer().number(77, 8).number(0, 8).number(30, 8).golomb(0, FRAME_NUM_BITS - 4, 0, ORDER_BITS - 4, 2)
    )
    sequence.number(0, 1).golomb(WIDTH // 16 - 1, HEIGHT // 32 - 1)
    sequence.number(
        0b0_0_1_0_0, 5
    )  # fields and frames, no pairs of macroblocks, direct_8x8, no cropping, no VUI
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
