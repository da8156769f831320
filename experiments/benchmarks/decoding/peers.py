"""The readers under comparison: ours, and each peer in its best idiomatic form, all on one thread.

A reader is told of a file once, untimed (`prepare`), and then reads jobs: uint8 [n t c h w], the layout in memory
being its own. Its frames are those of `Job.unique`, decoded once each, whatever the clips share.
"""

import json
import tempfile
from pathlib import Path
from typing import Protocol

import av
import cv2
import decord
import numpy as np
import torch
from floor import Floor
from torch import Tensor
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import DecoderTransform, Resize
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms
from works import SIZE, Job

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.conversion import allow_gather, disable_slow_gather
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.index import VideoIndex

OURS, FLOOR = "vidtrain", "floor"
# Beyond this many unwanted frames in a row OpenCV is told to seek; else it decodes them and converts nothing.
SEEK_PAST = 100


class Reader(Protocol):
    def prepare(self, path: str) -> None: ...

    def read(self, job: Job) -> Tensor: ...


class Gathering:
    """A reader, with or without gather instructions in the FFmpeg of PyAV, whose setting all of a process shares."""

    def __init__(self, allowed: bool, reader: Reader):
        self.allowed = allowed
        self.reader = reader
        disable_slow_gather()  # so that ours does not once more, when it is to gather
        self.prepare = reader.prepare

    def read(self, job: Job) -> Tensor:
        allow_gather(self.allowed)
        return self.reader.read(job)


class Ours:
    """`index` is "kept" in memory, "disk" (the file opened and the entry read for each job), or "cold" (none)."""

    def __init__(self, index: str):
        self.kind = index
        self.folder = tempfile.TemporaryDirectory(prefix="vidtrain_index_")
        self.file = Path(self.folder.name) / "index.sqlite" if index == "disk" else None
        self.index = VideoIndex(self.file)

    def prepare(self, path: str) -> None:
        self.index.info(path)

    def read(self, job: Job) -> Tensor:
        index = self.index if self.kind == "kept" else VideoIndex(self.file)
        video = index.info(job.path)
        views = [(clip, job.crop) for clip in job.clips]
        return decode_views(video, views, SIZE, "bilinear").transpose(1, 2)  # as the peers resize


class TorchCodec:
    """`seek` is exact, approximate, or mapped: the frame table given, so that nothing is scanned.

    With `decoder_transforms` crop and resize are the decoder's; else torchvision's, on full-size frames.
    """

    def __init__(self, seek: str, decoder_transforms: bool):
        self.seek = seek
        self.decoder_transforms = decoder_transforms
        self.mappings: dict[str, str] = {}

    def prepare(self, path: str) -> None:
        if self.seek != "mapped":
            return
        with av.open(path) as container:
            frames = [
                {"pts": frame.pts, "duration": frame.duration, "key_frame": int(frame.key_frame)}
                for frame in container.decode(video=0)
            ]
        self.mappings[path] = json.dumps({"frames": frames})

    def read(self, job: Job) -> Tensor:
        table = (
            {"custom_frame_mappings": self.mappings[job.path]} if self.seek == "mapped" else {"seek_mode": self.seek}
        )
        steps = [Box(job.crop), Resize(SIZE)] if self.decoder_transforms else None
        decoder = VideoDecoder(job.path, num_ffmpeg_threads=1, transforms=steps, **table)
        frames = decoder.get_frames_at(job.unique.tolist()).data
        return arranged(frames if self.decoder_transforms else resized(frames, job.crop), job)


class Box(DecoderTransform):
    """torchcodec's own crop at a place that the caller chooses; its RandomCrop draws it from the global generator."""

    def __init__(self, crop: Crop):
        self.crop = crop

    def _make_transform_spec(self, input_dims: tuple[int | None, int | None]) -> str:
        return f"crop, {self.crop.height}, {self.crop.width}, {self.crop.left}, {self.crop.top}"

    def _get_output_dims(self) -> tuple[int, int]:
        return self.crop.height, self.crop.width


class Decord:
    """With `scaled` its own width and height scale the whole frame, so that the box in it comes out at `SIZE`."""

    def __init__(self, scaled: bool):
        self.scaled = scaled
        self.sizes: dict[str, tuple[int, int]] = {}

    def prepare(self, path: str) -> None:
        with av.open(path) as container:
            stream = container.streams.video[0]
            self.sizes[path] = stream.width, stream.height

    def read(self, job: Job) -> Tensor:
        if not self.scaled:
            reader = decord.VideoReader(job.path, ctx=decord.cpu(0), num_threads=1)
            frames = torch.from_numpy(reader.get_batch(job.unique).asnumpy()).permute(0, 3, 1, 2)
            return arranged(resized(frames, job.crop), job)
        crop, (height, width) = job.crop, SIZE
        full = self.sizes[job.path]
        across, down = width / crop.width, height / crop.height
        size = {"width": round(full[0] * across), "height": round(full[1] * down)}
        reader = decord.VideoReader(job.path, ctx=decord.cpu(0), num_threads=1, **size)
        frames = torch.from_numpy(reader.get_batch(job.unique).asnumpy()).permute(0, 3, 1, 2)
        left = min(round(crop.left * across), size["width"] - width)
        top = min(round(crop.top * down), size["height"] - height)
        return arranged(frames[:, :, top : top + height, left : left + width], job)


class OpenCV:
    """Seeks by POS_FRAMES, grabs what lies between, retrieves what is wanted; BGR becomes RGB at the small size."""

    def prepare(self, path: str) -> None:
        pass

    def read(self, job: Job) -> Tensor:
        capture = cv2.VideoCapture(job.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        crop, height, width = job.crop, *SIZE
        shrinks = crop.width * crop.height > height * width
        frames = np.empty((len(job.unique), height, width, 3), np.uint8)
        at = 0
        for place, index in enumerate(job.unique.tolist()):
            if place == 0 or index - at > SEEK_PAST:
                capture.set(cv2.CAP_PROP_POS_FRAMES, index)
                at = index
            while at <= index:
                if not capture.grab():
                    raise RuntimeError(f"OpenCV has no frame {at}")
                at += 1
            _, picture = capture.retrieve()
            cut = picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
            small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            cv2.cvtColor(small, cv2.COLOR_BGR2RGB, dst=frames[place])
        capture.release()
        return arranged(torch.from_numpy(frames).permute(0, 3, 1, 2), job)


class PlainPyAV:
    """From the beginning to the last wanted frame, RGB at full size: as the documentation of transformers reads."""

    def prepare(self, path: str) -> None:
        pass

    def read(self, job: Job) -> Tensor:
        wanted, last = set(job.unique.tolist()), int(job.unique[-1])
        frames = []
        with av.open(job.path) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            for index, frame in enumerate(container.decode(stream)):
                if index in wanted:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if index == last:
                    break
        pictures = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        return arranged(resized(pictures, job.crop), job)


def resized(frames: Tensor, crop: Crop, scaling: InterpolationMode = InterpolationMode.BILINEAR) -> Tensor:
    """The box of full-size uint8 [t c h w], with torchvision's antialiased resize."""
    return transforms.resized_crop(frames, crop.top, crop.left, crop.height, crop.width, list(SIZE), scaling)


def arranged(frames: Tensor, job: Job) -> Tensor:
    """Frames of `job.unique` to [n t c h w]; no copy where the job is a single clip."""
    if len(frames) != len(job.unique):
        raise RuntimeError(f"{len(frames)} frames came for {len(job.unique)}")
    return frames[None] if job.places is None else frames[torch.from_numpy(job.places)]


def readers() -> dict[str, Reader]:
    """By name, the row order of the tables."""
    cv2.setNumThreads(1)
    told = {
        OURS: Ours("kept"),
        "vidtrain, index from disk": Ours("disk"),
        "vidtrain, no index": Ours("cold"),
        "no gathers: torchcodec exact, transforms": TorchCodec("exact", True),
    }
    as_they_come = {
        "vidtrain, gathers": Ours("kept"),
        "torchcodec exact": TorchCodec("exact", False),
        "torchcodec approximate": TorchCodec("approximate", False),
        "torchcodec mapped": TorchCodec("mapped", False),
        "torchcodec exact, transforms": TorchCodec("exact", True),
        "torchcodec approximate, transforms": TorchCodec("approximate", True),
        "torchcodec mapped, transforms": TorchCodec("mapped", True),
        "decord": Decord(False),
        "decord, scaled": Decord(True),
        "OpenCV": OpenCV(),
        "PyAV as in transformers": PlainPyAV(),
    }
    return {
        FLOOR: Floor(),
        **{name: Gathering(False, reader) for name, reader in told.items()},
        **{name: Gathering(True, reader) for name, reader in as_they_come.items()},
    }
