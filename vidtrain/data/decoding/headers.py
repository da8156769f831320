"""Reads the headers of coded pictures of H.264 and AV1 bit by bit, without decoding.

H.264: which pictures are fields (a frame may be coded as two fields, which some containers store as two packets), and
whether frame numbers are consecutive. Section numbers are those of ITU-T H.264.

AV1: whether other pictures can refer to a picture, which is so if it refreshes a reference slot. (VP9's pictures may
also pass on probabilities and motion vectors.) Section numbers are those of the AV1 bitstream specification, version
1.0.0 with errata 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

MOST_BYTES = 512  # no header that is read here is longer

IDR, SEQUENCE_PARAMETERS, PICTURE_PARAMETERS = 5, 7, 8  # nal_unit_type, table 7-1
# Profiles whose sequence parameters have chroma format and scaling matrices, 7.3.2.1.1
HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
COLORS_APART = 3  # chroma_format_idc of 4:4:4, whose planes may be coded separately
SLICE_HEAD = 24  # bytes of a slice that are kept: the first fields of its header are not longer
B_SLICES = (1, 6)  # slice_type, 7.4.3

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # obu_type, 6.2.2
KEY_FRAME, INTRA_ONLY, SWITCH = 0, 2, 3  # frame_type, 6.8.2
SELECTED_BY_FRAME = 2  # of seq_force_screen_content_tools and seq_force_integer_mv, 6.4.1
CONFIGURATION_BYTES = 4  # of an av1C record, before its units


class Bits:
    """Reads numbers of a given number of bits, most significant first; raises IndexError after the end."""

    def __init__(self, data: bytes):
        data = data[:MOST_BYTES]
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("the data ends within a number")
        return self._value >> self._left & ((1 << count) - 1)

    def golombs(self, count: int) -> list[int]:
        """Reads `count` numbers in Exp-Golomb code: n zeros, then n + 1 bits (ITU-T H.264, 9.1)."""
        left, numbers = self._left, []
        rest = self._value & ((1 << left) - 1)
        for _ in range(count):
            zeros = left - rest.bit_length()
            left -= 2 * zeros + 1
            if left < 0:
                raise IndexError("the data ends within a number")
            code = rest >> left
            rest -= code << left
            numbers.append(code - 1)
        self._left = left
        return numbers

    def golomb(self) -> int:
        return self.golombs(1)[0]


class _Sequence(NamedTuple):
    """The sequence parameters on which the layout of a slice header depends."""

    frame_num_bits: int
    planes_apart: bool
    frames_only: bool


class _Slice(NamedTuple):
    """The fields of a slice header. `parity` is 0 for a frame, 1 for a top field and 2 for a bottom field."""

    kind: int
    frame_num: int
    parity: int
    idr: bool
    reference: bool
    most_frame_nums: int


@dataclass(frozen=True)
class Survey:
    """Facts from the headers of a stream's pictures, one packet each."""

    second: list[bool]  # whether each packet is the second field of the frame that starts in the packet before
    paired: bool  # whether every field has its partner
    regular: bool  # whether frame numbers are consecutive; if not, a decoder replaces missing pictures by earlier ones
    has_b: bool  # whether there are B pictures


def survey(extradata: bytes, pictures: Sequence[Sequence[bytes]]) -> Survey:
    """Reads the headers of a stream: `pictures` holds for each packet its parameter sets, and the first bytes of its
    first and last slice.

    `extradata` is the stream's configuration record, if any. Pictures with damaged or missing headers count as frames
    with any frame number.
    """
    parameters = _Parameters()
    parameters.learn_record(extradata)
    slices = [parameters.read(units) for units in pictures]
    second: list[bool] = []
    first: _Slice | None = None
    paired = True
    for picture in slices:
        field = picture if picture is not None and picture.parity else None
        joins = field is not None and first is not None and _completes(first, field)
        paired = paired and (first is None or joins)
        second.append(joins)
        first = None if joins else field
    frames = [picture for picture, joins in zip(slices, second, strict=True) if not joins]
    has_b = any(picture is not None and picture.kind in B_SLICES for picture in slices)
    return Survey(second, paired and first is None, _run_on(frames), has_b)


def frames_only(extradata: bytes) -> bool:
    """Whether no picture is a field, by the configuration record."""
    parameters = _Parameters()
    parameters.learn_record(extradata)
    return parameters.frames_only


def _completes(first: _Slice, other: _Slice) -> bool:
    """Whether two pictures are fields of the same frame (7.4.1.2.4)."""
    opposite = other.parity == 3 - first.parity
    return opposite and (first.frame_num, first.reference) == (other.frame_num, other.reference)


def _run_on(frames: Sequence[_Slice | None]) -> bool:
    """Whether each frame's number is one more than that of the last reference frame (7.4.3)."""
    last: int | None = None
    for frame in frames:
        if frame is None:
            last = None
            continue
        if frame.idr:
            last = -1
        if last is None:
            last = frame.frame_num
        elif frame.frame_num != (last + 1) % frame.most_frame_nums:
            return False
        elif frame.reference:
            last = frame.frame_num
    return True


class _Parameters:
    """The parameter sets read so far, by their numbers."""

    def __init__(self) -> None:
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, int] = {}

    @property
    def frames_only(self) -> bool:
        return bool(self._sequences) and all(sequence.frames_only for sequence in self._sequences.values())

    def learn_record(self, extradata: bytes) -> None:
        """Reads the parameter sets of an avcC record, each after its length; other kinds of records are ignored."""
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
        """The picture of a packet; None if its headers are truncated, or refer to missing parameter sets."""
        try:
            slices = [unit for unit in units if not self._learn(unit)] if len(units) > 1 else units
            first = self._slice(slices[0])
            if first.parity and _completes(first, self._slice(slices[-1])):  # both fields are in the packet
                return first._replace(parity=0)
        except (IndexError, KeyError):
            return None
        return first

    def _learn(self, unit: bytes) -> bool:
        """Stores the unit if it is a parameter set; returns whether it is."""
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
    if b"\0\0\3" in data:  # removes emulation prevention bytes
        data = data.replace(b"\0\0\3", b"\0\0")
    return Bits(data)


def _sequence(bits: Bits) -> tuple[int, _Sequence]:
    """Section 7.3.2.1.1, up to frame_mbs_only_flag: the number of the parameter set, and its content."""
    profile = bits.read(8)
    bits.read(8 + 8)  # constraints, level
    number = bits.golomb()
    planes_apart = False
    if profile in HIGH_PROFILES:
        chroma = bits.golomb()
        planes_apart = chroma == COLORS_APART and bool(bits.read(1))
        bits.golombs(2)  # bit depths
        bits.read(1)
        if bits.read(1):  # seq_scaling_matrix_present_flag
            _skip_matrices(bits, 12 if chroma == COLORS_APART else 8)
    frame_num_bits = bits.golomb() + 4
    order = bits.golomb()  # pic_order_cnt_type
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1)
        bits.golombs(2)
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()  # max_num_ref_frames
    bits.read(1)
    bits.golombs(2)  # width and height
    return number, _Sequence(frame_num_bits, planes_apart, bool(bits.read(1)))


def _skip_matrices(bits: Bits, count: int) -> None:
    """Section 7.3.2.1.1.1: a list ends early if its next value is 0. Codes stand for 0, 1, -1, 2, -2 and so on."""
    for matrix in range(count):
        if not bits.read(1):
            continue
        last = following = 8
        for _ in range(16 if matrix < 6 else 64):
            if following:
                code = bits.golomb()
                following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
            last = following or last


@dataclass(frozen=True)
class _Av1Sequence:
    """The fields of a sequence header on which the layout of a frame header depends."""

    frame_id_bits: int  # 0: frames have no id
    force_screen_content_tools: int
    force_integer_mv: int
    order_hint_bits: int
    operating_points: int


def leaves_nothing(packet: bytes, extradata: bytes) -> bool:
    """Whether no picture in `packet` refreshes a reference slot, so that no other picture can refer to it.

    False if `extradata` (an av1C record, or only its units) has no sequence header, for streams with a decoder model,
    and for packets that only show a picture decoded earlier.
    """
    try:
        sequence = _sequence_header(extradata)
        if sequence is None:
            return False
        units = list(_obus(packet))
        if any(kind == SEQUENCE_HEADER for kind, _ in units):
            return False
        frames = [body for kind, body in units if kind in (FRAME_HEADER, FRAME)]
        return bool(frames) and all(_refreshes_nothing(body, sequence) for body in frames)
    except IndexError:  # the packet ends within a header: the decoder will report that
        return False


def has_layers(extradata: bytes) -> bool:
    """Whether the stream has several layers, of time or quality, by the sequence header."""
    try:
        sequence = _sequence_header(extradata)
    except IndexError:
        return False
    return sequence is not None and sequence.operating_points > 1


def _sequence_header(extradata: bytes) -> _Av1Sequence | None:
    """The sequence header in `extradata`; None if there is none, or if its kind is not supported here."""
    is_record = extradata[:1] == b"\x81"  # marker and version
    units = _obus(extradata[CONFIGURATION_BYTES:] if is_record else extradata)
    for kind, body in units:
        if kind == SEQUENCE_HEADER:
            return _read_sequence_header(Bits(body))
    return None


def _read_sequence_header(bits: Bits) -> _Av1Sequence | None:
    """Section 5.5.1."""
    bits.read(3 + 1)  # seq_profile, still_picture
    if bits.read(1):  # reduced_still_picture_header
        return None
    if bits.read(1):  # timing_info_present_flag
        bits.read(32 + 32)
        if bits.read(1):  # equal_picture_interval, then a number in uvlc
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros)
        if bits.read(1):  # decoder_model_info_present_flag
            return None
    delays_present = bits.read(1)
    operating_points = bits.read(5) + 1
    for _ in range(operating_points):
        bits.read(12)
        if bits.read(5) > 7:  # seq_level_idx: higher levels have tiers
            bits.read(1)
        if delays_present and bits.read(1):
            bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width_bits + height_bits)
    frame_id_bits = 0
    if bits.read(1):  # frame_id_numbers_present_flag
        frame_id_bits = bits.read(4) + bits.read(3) + 3
    bits.read(3 + 4)  # superblocks, intra tools; interintra, masks, warping, dual filter
    has_order_hint = bits.read(1)
    if has_order_hint:
        bits.read(2)
    screen_content = SELECTED_BY_FRAME if bits.read(1) else bits.read(1)
    integer_mv = SELECTED_BY_FRAME
    if screen_content and not bits.read(1):
        integer_mv = bits.read(1)
    order_hint_bits = bits.read(3) + 1 if has_order_hint else 0
    return _Av1Sequence(frame_id_bits, screen_content, integer_mv, order_hint_bits, operating_points)


def _refreshes_nothing(body: bytes, sequence: _Av1Sequence) -> bool:
    """Section 5.9.2, up to refresh_frame_flags."""
    bits = Bits(body)
    if bits.read(1):  # show_existing_frame
        return False
    kind, shown = bits.read(2), bits.read(1)
    if kind == SWITCH or (kind == KEY_FRAME and shown):  # they refresh every slot
        return False
    if not shown:
        bits.read(1)  # showable_frame
    error_resilient = bits.read(1)
    bits.read(1)  # disable_cdf_update
    screen_content = sequence.force_screen_content_tools
    if screen_content == SELECTED_BY_FRAME:
        screen_content = bits.read(1)
    if screen_content and sequence.force_integer_mv == SELECTED_BY_FRAME:
        bits.read(1)
    bits.read(sequence.frame_id_bits)
    bits.read(1)  # frame_size_override_flag
    bits.read(sequence.order_hint_bits)
    if kind not in (KEY_FRAME, INTRA_ONLY) and not error_resilient:
        bits.read(3)  # primary_ref_frame
    return bits.read(8) == 0  # refresh_frame_flags


def _obus(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The open bitstream units of `data` as (type, body) (sections 5.3.1 to 5.3.3, 4.10.5)."""
    at = 0
    while at < len(data):
        header = data[at]
        at += 2 if header & 4 else 1  # with or without the extension of layers
        size = len(data) - at
        if header & 2:  # obu_has_size_field
            size, shift = 0, 0
            while True:
                byte = data[at]
                size |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if not byte & 128:
                    break
        yield header >> 3 & 15, data[at : at + size]
        at += size
