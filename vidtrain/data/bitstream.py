"""Where decoding may start: a container's keyframe flag also marks pictures that only begin a recovery."""

import re
from collections.abc import Iterator

H264_IDR, H264_SEI = 5, 6
H264_PICTURES = range(1, 6)
SEI_RECOVERY_POINT = 6
HEVC_PICTURES = range(0, 32)
HEVC_RANDOM_ACCESS = range(16, 22)  # BLA, IDR and CRA

# A codec is here where a packet of MP4 or Matroska is one shown frame and its clean starts can be told.
SEEKABLE_CODECS = ("h264", "hevc", "vp9", "av1")


X264_BUILD = re.compile(rb"x264 - core (\d+)")


def is_clean_start(codec: str, packet: bytes, extradata: bytes) -> bool:
    """Whether the keyframe in `packet` and all frames shown after it decode exactly without what came before.

    `codec` is one of `SEEKABLE_CODECS`; `extradata` is the stream's configuration record.
    """
    if codec == "h264":
        return _h264_clean(packet, extradata)
    if codec == "hevc":
        return _hevc_clean(packet, extradata)
    return True  # keyframes of VP9 and AV1 reset every reference


def needs_first_packet(codec: str, first_packet: bytes, pixel_format: str) -> bool:
    """Whether frames decode right only after the file's first packet, so that there is no seeking.

    FFmpeg makes up for two errors of old x264 encoders, in direct prediction before build 34 and in 4:4:4
    before build 151. It knows them by a note that is in the first packet alone.
    """
    note = X264_BUILD.search(first_packet) if codec == "h264" else None
    return note is not None and int(note[1]) < (151 if "444" in pixel_format else 34)


def _h264_clean(packet: bytes, extradata: bytes) -> bool:
    """An IDR picture, or an open group's first picture, whose recovery is complete at once."""
    if len(extradata) < 7 or extradata[0] != 1:
        return False
    for unit in _units(packet, length_size=(extradata[4] & 3) + 1):
        kind = unit[0] & 31
        if kind == H264_SEI and _recovers_at_once(unit):
            return True
        if kind in H264_PICTURES:
            return kind == H264_IDR
    return False


def _hevc_clean(packet: bytes, extradata: bytes) -> bool:
    if len(extradata) < 23 or extradata[0] != 1:
        return False
    kinds = ((unit[0] >> 1) & 63 for unit in _units(packet, length_size=(extradata[21] & 3) + 1))
    return next((kind for kind in kinds if kind in HEVC_PICTURES), -1) in HEVC_RANDOM_ACCESS


def _units(packet: bytes, length_size: int) -> Iterator[bytes]:
    """The NAL units of a packet, each behind its length as in MP4 and Matroska."""
    at = 0
    while at + length_size < len(packet):
        length = int.from_bytes(packet[at : at + length_size], "big")
        at += length_size
        if length:
            yield packet[at : at + length]
        at += length


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an H.264 SEI unit holds a recovery point with recovery_frame_cnt 0 (ITU-T H.264, D.1.8)."""
    payload = unit[1:].replace(b"\0\0\3", b"\0\0")  # emulation prevention bytes carry nothing
    at = 0
    while at + 2 < len(payload):
        kind, at = _sei_number(payload, at)
        size, at = _sei_number(payload, at)
        if kind == SEI_RECOVERY_POINT and at < len(payload):
            return payload[at] >= 128  # 0 in Exp-Golomb code is a single 1 bit
        at += size
    return False


def _sei_number(payload: bytes, at: int) -> tuple[int, int]:
    """A number written as a sum of bytes, all 255 but the last, and the place behind it."""
    total = 0
    while at < len(payload) and payload[at] == 255:
        total, at = total + 255, at + 1
    return (total + payload[at], at + 1) if at < len(payload) else (total, at)
