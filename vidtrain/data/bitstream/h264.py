"""What the headers of H.264 pictures tell before they are decoded: which are fields, and whether their numbers run on.

A frame may be coded as two fields, a picture each, which some containers keep as two packets. Section numbers are
those of ITU-T H.264.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from vidtrain.data.bitstream.bits import Bits

IDR, SEQUENCE_PARAMETERS, PICTURE_PARAMETERS = 5, 7, 8  # nal_unit_type, table 7-1
# Profiles whose sequence parameters tell of chroma and of scaling matrices, 7.3.2.1.1
HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
COLORS_APART = 3  # chroma_format_idc of 4:4:4, whose planes may be coded apart
HEAD = 24  # bytes of a slice that are kept: its header's first fields take no more
B_SLICES = (1, 6)  # slice_type, 7.4.3


class _Sequence(NamedTuple):
    """What of the sequence parameters decides where a slice header's fields lie."""

    frame_num_bits: int
    planes_apart: bool
    frames_only: bool


class _Slice(NamedTuple):
    """`parity` is 0 for a frame, 1 for a top field and 2 for a bottom field."""

    kind: int
    frame_num: int
    parity: int
    idr: bool
    reference: bool
    most_frame_nums: int


@dataclass(frozen=True)
class Survey:
    """What the headers of a stream's pictures tell, one packet each.

    `second` says of each whether it is the second field of the frame whose first field is the packet before.
    `paired` is False where a field has no other one. `regular` says whether frame numbers run on as they do where no
    picture is missing; a decoder makes up for others from what it has decoded last. `has_b` is whether there are B
    pictures.
    """

    second: list[bool]
    paired: bool
    regular: bool
    has_b: bool


def survey(extradata: bytes, pictures: Sequence[Sequence[bytes]]) -> Survey:
    """What the headers say of `pictures`: of each packet the parameter sets, and how its first and last slice begin.

    `extradata` is the stream's configuration record; where it is none, the parameter sets are in the packets. Pictures
    whose headers are damaged or absent count as frames of any number.
    """
    parameters = _Parameters()
    parameters.learn_record(extradata)
    slices = [parameters.read(units) for units in pictures]
    second, first, paired = [], None, True
    for each in slices:
        is_field = each is not None and each.parity != 0
        joins = is_field and first is not None and _completes(first, each)
        paired = paired and (first is None or joins)
        second.append(joins)
        first = each if is_field and not joins else None
    frames = [each for each, joins in zip(slices, second, strict=True) if not joins]
    has_b = not {each.kind for each in slices if each is not None}.isdisjoint(B_SLICES)
    return Survey(second, paired and first is None, _run_on(frames), has_b)


def _completes(first: _Slice, other: _Slice) -> bool:
    """Whether two pictures are the fields of one frame (7.4.1.2.4)."""
    opposite = other.parity == 3 - first.parity
    return opposite and (first.frame_num, first.reference) == (other.frame_num, other.reference)


def _run_on(frames: Sequence[_Slice | None]) -> bool:
    """Whether each frame's number is one more than that of the last one that others may refer to (7.4.3)."""
    last: int | None = None
    for each in frames:
        if each is None:
            last = None
            continue
        if each.idr:
            last = -1
        if last is None:
            last = each.frame_num
        elif each.frame_num != (last + 1) % each.most_frame_nums:
            return False
        elif each.reference:
            last = each.frame_num
    return True


class _Parameters:
    """The parameter sets that have been seen, by their numbers."""

    def __init__(self):
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, int] = {}

    def learn_record(self, extradata: bytes) -> None:
        """Takes the parameter sets of an avcC record, each behind its length; another kind has none to take."""
        if len(extradata) < 7 or extradata[0] != 1:
            return
        at = 5
        with suppress(IndexError):
            for mask in (31, 255):
                count, at = extradata[at] & mask, at + 1
                for _ in range(count):
                    size = int.from_bytes(extradata[at : at + 2], "big")
                    self._learn(extradata[at + 2 : at + 2 + size])
                    at += 2 + size

    def read(self, units: Sequence[bytes]) -> _Slice | None:
        """The picture of a packet; None where its headers end early, or refer to parameters that are not there."""
        try:
            slices = [unit for unit in units if not self._learn(unit)] if len(units) > 1 else units
            first = self._slice(slices[0])
            if first.parity and _completes(first, self._slice(slices[-1])):  # both fields are in the packet
                return first._replace(parity=0)
        except (IndexError, KeyError):
            return None
        return first

    def _learn(self, unit: bytes) -> bool:
        """Whether the unit is a parameter set, which is kept."""
        kind = unit[0] & 31
        if kind == SEQUENCE_PARAMETERS:
            number, sequence = _sequence(_payload(unit))
            self._sequences[number] = sequence
        elif kind == PICTURE_PARAMETERS:
            bits = _payload(unit)
            number = bits.golomb()
            self._pictures[number] = bits.golomb()
        return kind in (SEQUENCE_PARAMETERS, PICTURE_PARAMETERS)

    def _slice(self, unit: bytes) -> _Slice:
        """Section 7.3.3, up to bottom_field_flag."""
        bits = _payload(unit)
        _, kind, parameters = bits.golombs(3)  # first_mb_in_slice, slice_type, pic_parameter_set_id
        frame_num_bits, planes_apart, frames_only = self._sequences[self._pictures[parameters]]
        if planes_apart:
            bits.read(2)
        frame_num, parity = bits.read(frame_num_bits), 0
        if not frames_only and bits.read(1):  # field_pic_flag
            parity = 1 + bits.read(1)
        return _Slice(kind, frame_num, parity, unit[0] & 31 == IDR, unit[0] & 0x60 != 0, 1 << frame_num_bits)


def _payload(unit: bytes) -> Bits:
    data = unit[1:]
    if b"\0\0\3" in data:  # emulation prevention bytes carry nothing
        data = data.replace(b"\0\0\3", b"\0\0")
    return Bits(data)


def _sequence(bits: Bits) -> tuple[int, _Sequence]:
    """Section 7.3.2.1.1, up to frame_mbs_only_flag: the number of the parameter set and what is in it."""
    profile = bits.read(8)
    bits.read(8 + 8)  # constraints, level
    number = bits.golomb()
    planes_apart = False
    if profile in HIGH_PROFILES:
        chroma = bits.golomb()
        planes_apart = chroma == COLORS_APART and bool(bits.read(1))
        bits.golomb(), bits.golomb()  # bit depths
        bits.read(1)
        if bits.read(1):  # seq_scaling_matrix_present_flag
            _skip_matrices(bits, 12 if chroma == COLORS_APART else 8)
    frame_num_bits = bits.golomb() + 4
    order = bits.golomb()  # pic_order_cnt_type
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1)
        bits.golomb(), bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()  # max_num_ref_frames
    bits.read(1)
    bits.golomb(), bits.golomb()  # width and height
    return number, _Sequence(frame_num_bits, planes_apart, bool(bits.read(1)))


def _skip_matrices(bits: Bits, count: int) -> None:
    """Section 7.3.2.1.1.1: a list ends early where its next value is 0."""
    for matrix in range(count):
        if not bits.read(1):
            continue
        last = following = 8
        for _ in range(16 if matrix < 6 else 64):
            if following:
                following = (last + bits.signed_golomb()) % 256
            last = following or last
