"""How far clips of `clip.resize=videomae`, and usual ones, are from those of decord and OpenCV, by which VideoMAE and
V-JEPA read videos.

uv run --group bench python experiments/view_protocols/against_decord.py VIDEO ...
"""

import sys

import cv2
import decord
import numpy as np

from vidtrain.data.augment.geometry import CenterCrops, Crop, published_crops
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.metadata import read_metadata

SIZE, FRAMES = 224, 8


def against(path: str) -> str:
    """Mean and greatest distance of the center crop of some frames in levels, of each way to read it."""
    video = read_metadata(path)
    indices = np.linspace(0, video.num_frames - 1, FRAMES).astype(int)
    (box,) = published_crops(CenterCrops(), video.width, video.height, (SIZE, SIZE), "videomae")
    assert box.scaled is not None
    read = decord.VideoReader(path).get_batch(indices).asnumpy()
    scaled = np.stack([cv2.resize(frame, box.scaled, interpolation=cv2.INTER_LINEAR) for frame in read])
    theirs = scaled[:, box.top : box.top + SIZE, box.left : box.left + SIZE].astype(int)
    (usual,) = CenterCrops()(video.width, video.height, (SIZE, SIZE))
    results = []
    for resize, crop in (("videomae", box), ("antialiased", usual)):
        ours = decode_views(video, [(indices, crop)], (SIZE, SIZE), "bilinear", resize=resize)[0]
        apart = np.abs(ours.numpy().transpose(1, 2, 3, 0) - theirs)
        results.append(f"{resize} mean {apart.mean():.2f}, at most {apart.max()}")
    whole = Crop(0, 0, video.width, video.height)
    colors = decode_views(video, [(indices, whole)], (video.height, video.width), "bilinear")[0]
    apart = np.abs(colors.numpy().transpose(1, 2, 3, 0) - read.astype(int))
    return f"{path}: {'; '.join(results)}; whole frames, unscaled, mean {apart.mean():.2f}"


for name in sys.argv[1:]:
    print(against(name))
