"""A run of seconds: a few generated videos a class, and a ViT of some thousand parameters."""


def small(*more: str, train: int = 2, val: int = 1, test: int = 1, frames: int = 24, depth: int = 1) -> list[str]:
    """Overrides for so many videos a class and split, of so many frames at 32 pixels, and for so many blocks."""
    return [
        f"+dataset.source.train_per_class={train}",
        f"+dataset.source.val_per_class={val}",
        f"+dataset.source.test_per_class={test}",
        f"+dataset.source.frames={frames}",
        "+dataset.source.size=32",
        "model.encoder.embed_dim=24",
        f"model.encoder.depth={depth}",
        "clip.size=16",
        "trainer.num_workers=0",
        "trainer.cpu_threads=1",
        *more,
    ]
