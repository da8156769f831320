"""Embeddings that are made up, for tests that open no video."""

from dataclasses import replace

import numpy as np

from vidtrain.embeddings.store import Embeddings

ENCODER = {"weights": "w", "protocol": "p", "source": "best.pt", "clips": "8x3 frames", "learned_from": None}


def made(videos: int = 60, classes: int = 3, groups: int = 20, seed: int = 0, apart: float = 2.0) -> Embeddings:
    """Videos of classes in turn whose vectors lie around a center of their class, `apart` from the others."""
    rng = np.random.default_rng(seed)
    labels = np.arange(videos) % classes
    centers = apart * rng.normal(size=(classes, 16))
    return Embeddings(
        vectors=(centers[labels] + rng.normal(size=(videos, 16))).astype(np.float32),
        paths=np.array([f"/videos/{number:04d}.mp4" for number in range(videos)]),
        splits=np.array(["train"] * videos),
        groups=np.array([f"g{number // classes % groups}" for number in range(videos)]),
        classes=np.array([f"class {number}" for number in range(classes)]),
        labels=labels,
        starts=np.full(videos, np.nan),
        ends=np.full(videos, np.nan),
        encoder=ENCODER,
    )


def several(embeddings: Embeddings) -> Embeddings:
    """The same with several labels a video."""
    marks = np.eye(len(embeddings.classes), dtype=np.uint8)[embeddings.labels]
    marks[::4, 0] = 1
    return replace(embeddings, labels=marks)
