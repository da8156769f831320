"""What an AV1 packet tells of its pictures before it is decoded: whether they leave anything behind.

Section numbers are those of the AV1 bitstream specification, version 1.0.0 with errata 1. VP9's pictures may also hand
on probabilities and motion; an AV1 picture hands everything on through the reference slots that it refreshes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vidtrain.data.bitstream.bits import Bits

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # obu_type, 6.2.2
KEY_FRAME, INTRA_ONLY, SWITCH = 0, 2, 3  # frame_type, 6.8.2
SELECTED_BY_FRAME = 2  # of seq_force_screen_content_tools and seq_force_integer_mv, 6.4.1
CONFIGURATION_BYTES = 4  # of an av1C record, before the units that it carries


@dataclass(frozen=True)
class SequenceHeader:
    """What of a sequence header decides where a frame header's fields lie."""

    frame_id_bits: int  # 0: frames carry none
    force_screen_content_tools: int
    force_integer_mv: int
    order_hint_bits: int
    operating_points: int


def leaves_nothing(packet: bytes, extradata: bytes) -> bool:
    """Whether every picture in `packet` refreshes no reference slot, so that no other picture can refer to it.

    False where that cannot be told: without a sequence header in `extradata` (an av1C record, or the units alone), for
    streams with a decoder model, and for packets that only show a picture decoded earlier.
    """
    try:
        sequence = _sequence_header(extradata)
        if sequence is None:
            return False
        units = list(_units(packet))
        if any(kind == SEQUENCE_HEADER for kind, _ in units):
            return False
        frames = [body for kind, body in units if kind in (FRAME_HEADER, FRAME)]
        return bool(frames) and all(_refreshes_nothing(body, sequence) for body in frames)
    except IndexError:  # the packet ends within a header: it is the decoder's to judge
        return False


def has_layers(extradata: bytes) -> bool:
    """Whether the stream can be decoded in several layers, of time or quality, as the sequence header says."""
    try:
        sequence = _sequence_header(extradata)
    except IndexError:
        return False
    return sequence is not None and sequence.operating_points > 1


def _sequence_header(extradata: bytes) -> SequenceHeader | None:
    """The header that `extradata` carries; None where there is none, or one of a kind that is not read here."""
    is_record = extradata[:1] == b"\x81"  # marker and version
    units = _units(extradata[CONFIGURATION_BYTES:] if is_record else extradata)
    for kind, body in units:
        if kind == SEQUENCE_HEADER:
            return _read_sequence_header(Bits(body))
    return None


def _read_sequence_header(bits: Bits) -> SequenceHeader | None:
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
    return SequenceHeader(frame_id_bits, screen_content, integer_mv, order_hint_bits, operating_points)


def _refreshes_nothing(body: bytes, sequence: SequenceHeader) -> bool:
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


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
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
