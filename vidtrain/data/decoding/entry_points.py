"""Reads from the bits of a packet whether decoding can start there, and whether other pictures refer to it. (The
container's keyframe flag is not enough: it also marks pictures that only start a gradual recovery.)"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vidtrain.data.decoding.headers import PICTURE_PARAMETERS, SEQUENCE_PARAMETERS, SLICE_HEAD, leaves_nothing

H264_IDR, H264_SEI = 5, 6
H264_PICTURES = range(1, 6)
H264_PARAMETERS = (SEQUENCE_PARAMETERS, PICTURE_PARAMETERS)
H264_LAYERS = (14, 15, 20, 21)  # unit types of scalable and multiview streams
H264_REFERENCE = 0x60  # nal_ref_idc
SEI_RECOVERY_POINT = 6
HEVC_PICTURES = range(0, 32)
HEVC_PARAMETERS = (32, 33, 34)
HEVC_RANDOM_ACCESS = range(16, 22)  # BLA, IDR and CRA
HEVC_NON_REFERENCE = range(0, 16, 2)  # sub-layer non-reference pictures
MPEG4_B_PICTURE = 2

X264_BUILD = re.compile(rb"x264 - core (\d+)")
START_CODE = re.compile(rb"\x00\x00\x01")
MPEG4_PICTURE = re.compile(rb"\x00\x00\x01\xb6(.)", re.DOTALL)

# Codecs for which clean entry points can be recognized, and whose packets in MP4 and Matroska are one shown frame each
TELLING_CODECS = ("h264", "hevc", "vp9", "av1")


@dataclass(slots=True)
class CodedPicture:
    """The properties of one coded picture, read from its bits; the defaults if they cannot be read."""

    clean: bool = False  # whether it and all frames shown after it decode exactly without earlier packets
    layer: int = 0  # the temporal layer of a picture of HEVC, which may refer to lower layers
    disposable: bool = False  # whether no other picture of its layer refers to it
    slices: int = 1  # number of slices, for H.264 and HEVC
    layered: bool = False  # whether its packet also has pictures of other views, sizes or qualities
    headers: tuple[bytes, ...] = ()  # of H.264, the input of `survey`
    parameters: tuple[bytes, ...] = ()  # the parameter sets of H.264 and HEVC in its packet


@dataclass
class ListedPicture:
    """One coded picture as the container lists it; `position` is None if its bytes are not contiguous in the file."""

    position: int | None
    size: int
    pts: int | None
    keyframe: bool
    clean: bool
    hidden: bool  # not to be shown
    coded: CodedPicture


def coded_picture(codec: str, packet: bytes, extradata: bytes) -> CodedPicture:
    """Reads the properties of the picture in `packet`; `extradata` is the stream's configuration record."""
    if codec == "h264":
        return _h264_picture(list(_units(packet, _length_size(extradata, at=4, least=7))))
    if codec == "hevc":
        return _hevc_picture(list(_units(packet, _length_size(extradata, at=21, least=23))))
    if codec == "mpeg4":
        kinds = [match[1][0] >> 6 for match in MPEG4_PICTURE.finditer(packet)]
        return CodedPicture(disposable=kinds == [MPEG4_B_PICTURE])
    # keyframes of VP9 and AV1 reset every reference
    disposable = codec == "av1" and leaves_nothing(packet, extradata)
    return CodedPicture(clean=codec in TELLING_CODECS, disposable=disposable)


def _h264_picture(units: Sequence[bytes]) -> CodedPicture:
    kinds = [unit[0] & 31 for unit in units]
    slices = [unit for unit, kind in zip(units, kinds, strict=True) if kind in H264_PICTURES]
    parameters = tuple(unit for unit, kind in zip(units, kinds, strict=True) if kind in H264_PARAMETERS)
    heads = tuple(unit[:SLICE_HEAD] for unit in slices[:1] + slices[1:][-1:])
    return CodedPicture(
        clean=_h264_clean(units),
        disposable=bool(slices) and not parameters and not any(unit[0] & H264_REFERENCE for unit in slices),
        slices=len(slices),
        layered=any(kind in H264_LAYERS for kind in kinds),
        headers=parameters + heads,
        parameters=parameters,
    )


def _h264_clean(units: Sequence[bytes]) -> bool:
    """Whether it is an IDR picture, or a recovery point that is complete at once (the first picture of an open GOP)."""
    for unit in units:
        kind = unit[0] & 31
        if kind == H264_SEI and _recovers_at_once(unit):
            return True
        if kind in H264_PICTURES:
            return kind == H264_IDR
    return False


def _hevc_picture(units: Sequence[bytes]) -> CodedPicture:
    units = [unit for unit in units if len(unit) > 1]
    kinds = [(unit[0] >> 1) & 63 for unit in units]
    parameters = tuple(unit for unit, kind in zip(units, kinds, strict=True) if kind in HEVC_PARAMETERS)
    pairs = zip(units, kinds, strict=True)
    pictures = [(kind, (unit[1] & 7) - 1) for unit, kind in pairs if kind in HEVC_PICTURES]
    top_layer = max((layer for _, layer in pictures), default=0)
    passed_over = all(kind in HEVC_NON_REFERENCE and layer == top_layer for kind, layer in pictures)
    return CodedPicture(
        clean=bool(pictures) and pictures[0][0] in HEVC_RANDOM_ACCESS,
        layer=top_layer,
        disposable=bool(pictures) and passed_over and not parameters,
        slices=len(pictures),
        layered=any((unit[0] & 1) << 5 | unit[1] >> 3 for unit in units),  # nuh_layer_id
        parameters=parameters,
    )


class ParametersInMidStream:
    """Tracks the parameter sets of H.264 and HEVC, which are valid until the next ones.

    A file that was joined from several has parameter sets in its middle that differ from its configuration record,
    `extradata`. After these, decoding can start only at packets with their own parameter sets.
    """

    def __init__(self, codec: str, extradata: bytes):
        self._codec = codec
        self._record = extradata
        self._other_kinds: set[int] = set()

    def known_at(self, picture: CodedPicture) -> bool:
        """Whether a decoder that starts with `picture` has the right parameter sets. Call it once for each packet, in
        order."""
        kinds = {self._kind(unit) for unit in picture.parameters}
        self._other_kinds.update(self._kind(unit) for unit in picture.parameters if unit not in self._record)
        return self._other_kinds <= kinds

    def _kind(self, unit: bytes) -> int:
        return unit[0] & 31 if self._codec == "h264" else (unit[0] >> 1) & 63


def pictures_apart(codec: str, packet: bytes) -> list[tuple[int, int]]:
    """The pictures in a packet, as (offset, size).

    Only MPEG-4 in AVI has several in a packet: a reference picture and the B picture that is shown before it. If they
    are separated, the B picture can be skipped.
    """
    if codec != "mpeg4":
        return [(0, len(packet))]
    places = [match.start() for match in MPEG4_PICTURE.finditer(packet)]
    cuts = [0, *places[1:], len(packet)]  # headers before the first picture belong to it
    return [(first, end - first) for first, end in zip(cuts[:-1], cuts[1:], strict=True)]


def needs_first_packet(codec: str, first_packet: bytes, pixel_format: str) -> bool:
    """Whether frames decode correctly only after the file's first packet, so that decoding cannot start elsewhere.

    FFmpeg corrects two errors of old x264 encoders, in direct prediction before build 34 and in 4:4:4 before build 151.
    It recognizes these encoders by a note in the first packet.
    """
    note = X264_BUILD.search(first_packet) if codec == "h264" else None
    return note is not None and int(note[1]) < (151 if "444" in pixel_format else 34)


def _length_size(extradata: bytes, at: int, least: int) -> int | None:
    """The number of bytes of a unit's length, in MP4 and Matroska; None if units are separated by start codes."""
    return (extradata[at] & 3) + 1 if len(extradata) >= least and extradata[0] == 1 else None


def _units(packet: bytes, length_size: int | None) -> Iterator[bytes]:
    """The NAL units of a packet."""
    if length_size is None:
        starts = [match.end() for match in START_CODE.finditer(packet)]
        ends = [start - 3 for start in starts[1:]] + [len(packet)]
        yield from (packet[start:end] for start, end in zip(starts, ends, strict=True) if end > start)
        return
    at = 0
    while at + length_size < len(packet):
        length = int.from_bytes(packet[at : at + length_size], "big")
        at += length_size
        if length:
            yield packet[at : at + length]
        at += length


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an H.264 SEI unit holds a recovery point with recovery_frame_cnt 0 (ITU-T H.264, D.1.8)."""
    payload = unit[1:].replace(b"\0\0\3", b"\0\0")  # removes emulation prevention bytes
    at = 0
    while at + 2 < len(payload):
        kind, at = _sei_number(payload, at)
        size, at = _sei_number(payload, at)
        if kind == SEI_RECOVERY_POINT and at < len(payload):
            return payload[at] >= 128  # 0 in Exp-Golomb code is a single 1 bit
        at += size
    return False


def _sei_number(payload: bytes, at: int) -> tuple[int, int]:
    """Reads a number that is coded as a sum of bytes, all 255 except the last; also returns the next offset."""
    total = 0
    while at < len(payload) and payload[at] == 255:
        total, at = total + 255, at + 1
    return (total + payload[at], at + 1) if at < len(payload) else (total, at)
