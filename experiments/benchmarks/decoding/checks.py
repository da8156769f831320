"""Checks whether a reader gives the right frames, and how accurate their pixels are."""

from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.frame import PictureType
from floor import Floor
from peers import Reader, arranged, resized
from torch import Tensor
from torchvision.transforms import InterpolationMode
from works import SIZE, Job, Shape, center

from vidtrain.data.augment.geometry import Crop

GRID = 32
# A frame counts as another one only where that one is nearer by more than this, in levels of 255 and as a share of
# the distance: duplicates pass, and so does a reader that is off by a part of a pixel.
MARGIN, SHARE = 0.02, 0.05
SCALINGS = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)


@dataclass(frozen=True)
class Reference:
    """Facts of a file, and small luma pictures of its frames, from decoding it from beginning to end.

    `luma` is float32 [scaling frame pixel], for each of `SCALINGS`.
    """

    shape: Shape
    luma: Tensor
    codec: str
    keyframes: int
    b_share: float


def reference(path: str) -> Reference:
    luma, kinds, keyframes = [], [], 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        codec = stream.codec_context.codec.canonical_name
        for frame in container.decode(stream):
            shape = Shape(len(luma) + 1, frame.width, frame.height)
            luma.append(torch.stack([_small(_rendered(frame, center(shape), each)) for each in SCALINGS]))
            keyframes += frame.key_frame
            kinds.append(PictureType(frame.pict_type).name)
    return Reference(shape, torch.stack(luma, dim=1), codec, keyframes, kinds.count("B") / len(kinds))


def _rendered(frame: av.VideoFrame, crop: Crop, scaling: InterpolationMode = SCALINGS[0]) -> Tensor:
    """Uint8 [c h w] as plain PyAV and torchvision give it."""
    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return resized(picture[None], crop, scaling)[0]


def _small(pictures: Tensor) -> Tensor:
    """[... c h w] -> luma [... GRID * GRID]."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    luma = (pictures.float() * weights).sum(-3)
    return F.adaptive_avg_pool2d(luma.reshape(-1, *SIZE), GRID).reshape(*luma.shape[:-2], GRID * GRID)


def wrong_frames(reader: Reader, job: Job, known: Reference) -> tuple[int, int]:
    """The number of wrong frames of a centered job, and the number of its frames."""
    if isinstance(reader, Floor):
        frames = {index: _rendered(frame, job.crop) for index, frame in reader.frames(job)}
        pixels = arranged(torch.stack([frames[index] for index in job.unique.tolist()]), job)
    else:
        pixels = reader.read(job)
    wanted = torch.from_numpy(np.stack(job.clips)).flatten()
    found = _small(pixels).reshape(len(wanted), -1)
    # a reader's scaling is its own, and so are a gain and an offset, of another range or matrix
    errors = torch.stack([_residuals(each, known.luma).min(dim=0).values for each in found])
    own, least = errors.gather(1, wanted[:, None])[:, 0], errors.min(dim=1).values
    return int((own > least * (1 + SHARE) + MARGIN).sum()), len(wanted)


def _residuals(picture: Tensor, candidates: Tensor) -> Tensor:
    """Root mean square error of `picture` against gain * candidate + offset, gain near 1."""
    x = candidates - candidates.mean(dim=-1, keepdim=True)
    y = picture - picture.mean()
    gain = ((x * y).sum(-1) / (x * x).sum(-1).clamp_min(1e-6)).clamp(0.8, 1.25)
    return (y - gain[..., None] * x).square().mean(dim=-1).sqrt()


def pixel_quality(readers: dict[str, Reader], job: Job, report: Callable[[str, dict[str, float]], None]) -> None:
    """Reports for each reader the PSNR in dB against float references, and the mean shift in levels of 255.

    A reference is the BT.601 limited-range matrix in float on the decoded planes, cut, scaled with antialiasing,
    bicubic or bilinear, and only then clipped to 0..255. Chroma is interpolated linearly first, either from where
    H.264 puts it by default ("left") or as if it lay in the middle of its four pixels ("center").
    """
    with av.open(job.path) as container:
        wanted = set(job.unique.tolist())
        planes = [f.to_ndarray() for i, f in enumerate(container.decode(video=0)) if i in wanted]
    targets = {}
    for place in ("left", "center"):
        exact = torch.stack([_float_rgb(each, job.crop, place) for each in planes])
        for mode in ("bicubic", "bilinear"):
            scaled = F.interpolate(exact, SIZE, mode=mode, antialias=True, align_corners=False)
            targets[f"{place} {mode}"] = scaled.clamp(0, 255)
    for name, reader in readers.items():
        found = reader.read(job)[0].float()
        errors = {key: found - target for key, target in targets.items()}
        scores = {key: float(10 * torch.log10(255**2 / error.square().mean())) for key, error in errors.items()}
        report(name, {**scores, "bias": float(errors["center bicubic"].mean())})


def _float_rgb(planes: np.ndarray, crop: Crop, place: str) -> Tensor:
    """yuv420p as PyAV lays it out, uint8 [3h/2 w] -> float RGB of the crop [c h w], not clipped."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    flat = torch.from_numpy(planes).flatten().double()
    y = flat[: height * width].reshape(height, width)
    u, v = flat[height * width :].reshape(2, height // 2, width // 2)
    chroma = _upsampled(torch.stack([u, v]), place) - 128
    y = (y - 16) * 255 / 219
    u, v = chroma * 255 / 224
    red, blue = y + 1.402 * v, y + 1.772 * u
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    rgb = torch.stack([red, green, blue])
    return rgb[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].float()


def _upsampled(chroma: Tensor, place: str) -> Tensor:
    """[2 h w] -> [2 2h 2w], linear: samples lie between two rows, and on every second column or between two."""
    if place == "center":
        return F.interpolate(chroma[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    padded = F.pad(chroma[None], (0, 1, 1, 1), mode="replicate")[0]
    across = torch.stack([padded[..., :-1], (padded[..., :-1] + padded[..., 1:]) / 2], dim=-1).flatten(-2)
    above, here, below = across[:, :-2], across[:, 1:-1], across[:, 2:]
    return torch.stack([(above + 3 * here) / 4, (3 * here + below) / 4], dim=2).flatten(1, 2)
