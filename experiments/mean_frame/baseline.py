"""How far the mean frame of a video goes: chance, its nearest neighbor, and a linear classifier on it.

python experiments/mean_frame/baseline.py dataset=ucf101 data_root=/data [any override of vidtrain.train]

Reads train and test (val where there is none) as vidtrain.train with the same overrides does. A model that does no
better than this has learned what the scene looks like, and nothing of how it moves.
"""

import sys

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor

from vidtrain.app.check import check_run
from vidtrain.app.launch import report
from vidtrain.build import data as build_data
from vidtrain.config.targets import CONF, register_schemas
from vidtrain.tracking.console import make_console
from vidtrain.training.ranks.distributed import join_ranks

SIDE = 16  # pixels of the mean frame that is compared
PROTOCOL = ["clip.sampling=uniform", "clip.frame_step=null", "clip.fps=null", "clip.duration=null"]
PROTOCOL += [
    "clip.frames=8",
    "clip.size=64",
    "clip.eval_clips=1",
    "augmentation=none",
    "trainer.num_workers=0",
]


def main(overrides: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*PROTOCOL, *overrides])
    report([("the configuration", key, why) for key, why in check_run(cfg, training=False)])
    with join_ranks("cpu") as ranks:
        console = make_console(True)
        reading = build_data.reading(cfg, ranks, None)
        splits = build_data.manifests(cfg, ranks, console)
        names = "train", "test" if "test" in splits else "val"
        frames, labels = zip(
            *(
                _mean_frames(build_data.eval_data(cfg, name, splits[name], reading, ranks), console)
                for name in names
            ),
            strict=True,
        )
    classes = len(splits["train"].classes)
    most = labels[1].bincount(minlength=classes).max().item() / len(labels[1])
    neighbor = labels[0][torch.cdist(frames[1], frames[0]).argmin(dim=1)]
    linear = _linear(frames[0], labels[0], frames[1], classes)
    print(f"{names[1]}: {len(labels[1])} videos, {classes} classes")
    for name, right in (
        ("nearest neighbor", neighbor == labels[1]),
        ("linear classifier", linear == labels[1]),
    ):
        print(f"{name} on the mean frame: {right.double().mean():.3f} ({int(right.sum())}/{len(right)})")
    print(f"chance {1 / classes:.3f}, the most frequent class {most:.3f}")


def _mean_frames(data: build_data.EvalData, console) -> tuple[Tensor, Tensor]:
    """Mean frames [v 3*side*side] in [0, 1], and labels [v]."""
    frames, labels = [], []
    for batch in data.batches(console):
        mean = batch.clips.float().mean(dim=(1, 3)) / 255
        frames.append(F.interpolate(mean, size=(SIDE, SIDE), mode="area").flatten(1))
        labels.append(batch.labels)
    return torch.cat(frames), torch.cat(labels)


def _linear(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Predictions of a ridge classifier on standardized pixels; its strength is chosen on a fifth of train."""
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    targets = F.one_hot(labels, classes).float()
    held = torch.arange(len(train)) % 5 == 0
    strengths = [10.0**k for k in range(0, 6)]
    scores = [
        ((train[held] @ _ridge(train[~held], targets[~held], each)).argmax(dim=1) == labels[held]).sum()
        for each in strengths
    ]
    best = strengths[int(torch.stack(scores).argmax())]
    return (test @ _ridge(train, targets, best)).argmax(dim=1)


def _ridge(inputs: Tensor, targets: Tensor, strength: float) -> Tensor:
    kernel = inputs @ inputs.T + strength * torch.eye(len(inputs))
    return inputs.T @ torch.linalg.solve(kernel, targets)


if __name__ == "__main__":
    main(sys.argv[1:])
