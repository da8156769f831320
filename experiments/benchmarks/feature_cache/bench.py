"""Times an epoch with and without cached features, and compares the accuracy of the heads.

The table of README.md: run it from the repository's root, on an idle machine if there is one.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev

from vidtrain.tracking.run_log import read_metrics
from vidtrain.training import checkpoint

COMMON = ["logger=none", "stage=head_only", "trainer.cpu_threads=1", "trainer.num_workers=1"]
SPEED = [
    "model=vit3d_small",
    "clip.frames=16",
    "clip.frame_step=2",
    "clip.size=112",
    "+dataset.source.train_per_class=6",
    "+dataset.source.val_per_class=2",
    "+dataset.source.test_per_class=1",
    "+dataset.source.frames=48",
    "+dataset.source.size=128",
    "trainer.batch_size=10",
]


def train(out: Path, name: str, *overrides: str) -> tuple[Path, float]:
    """A run in a process of its own; its folder, and the seconds that it took in all."""
    folder, started = out / name, time.perf_counter()
    command = [sys.executable, "-m", "vidtrain.train", *COMMON, *overrides, f"run_dir={folder}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return folder, time.perf_counter() - started


def cached(out: Path, name: str, views: int) -> list[str]:
    return [
        "stage.head_only.cache_features=true",
        f"stage.head_only.cache_views={views}",
        f"data.features_root={out}/features_{name}",
    ]


def epoch_seconds(folder: Path) -> list[float]:
    """Seconds of every epoch from the second on, including validation; the first epoch waits for workers."""
    return [row["time/epoch_s"] for row in read_metrics(folder) if "time/epoch_s" in row][1:]


def measure_speed(out: Path, rounds: int) -> None:
    data = [*SPEED, f"data_root={out}/speed_data"]
    _, filling = train(out, "fill", *data, *cached(out, "speed", 1), "trainer.epochs=1")
    _, reading = train(out, "read", *data, *cached(out, "speed", 1), "trainer.epochs=1")
    plain, kept = [], []
    for number in range(rounds):  # they take turns, as other programs use the machine too
        plain += epoch_seconds(train(out, f"plain{number}", *data, "trainer.epochs=2")[0])
        kept += epoch_seconds(train(out, f"cached{number}", *data, *cached(out, "speed", 1), "trainer.epochs=6")[0])
    size = sum(file.stat().st_size for file in (out / "features_speed").rglob("tokens.f16"))
    print(f"re-encoding {median(plain):.2f} s an epoch ({min(plain):.2f} to {max(plain):.2f}, {len(plain)} epochs)")
    print(f"cached      {median(kept):.3f} s an epoch ({min(kept):.3f} to {max(kept):.3f}, {len(kept)} epochs)")
    print(f"ratio of the medians {median(plain) / median(kept):.1f}")
    print(f"filling the cache took {filling - reading:.1f} s, once; it holds {size / 1e6:.1f} MB")


def measure_accuracy(out: Path, seeds: int, epochs: int, views: int, encoder_epochs: int) -> None:
    """New heads on the frozen encoder of a whole run, trained with and without a cache of so many views."""
    data = [f"data_root={out}/accuracy_data"]
    folder, _ = train(out, "encoder", *data, "stage=full", f"trainer.epochs={encoder_epochs}", "seed=100")
    print(f"the encoder's own run: test top-1 {top1(folder):.3f}", flush=True)
    # without the head, which is to be learned anew
    payload = checkpoint.load(folder / "checkpoints/best.pt")
    encoder = {name: tensor for name, tensor in payload["model"].items() if name.startswith("encoder.")}
    checkpoint.save({**payload, "model": encoder}, out / "encoder.pt")
    fresh = [f"init_from={out}/encoder.pt", f"trainer.epochs={epochs}"]
    found: dict[str, list[float]] = {"re-encoding": [], "cached": []}
    for seed in range(seeds):
        for name, more in (("re-encoding", []), ("cached", cached(out, "accuracy", views))):
            kind = f"{name}_{views}_views" if more else name
            folder, _ = train(out, f"{kind}_{epochs}_epochs_{seed}", *data, *fresh, f"seed={seed}", *more)
            found[name].append(top1(folder))
            print(f"seed {seed}, {name}: test top-1 {found[name][-1]:.3f}", flush=True)
    for name, values in found.items():
        print(f"{name}: test top-1 {mean(values):.4f}, standard deviation over seeds {deviation(values):.4f}")
    gains = [kept - plain for plain, kept in zip(*found.values(), strict=True)]
    error = deviation(gains) / len(gains) ** 0.5
    print(f"cached minus re-encoding, by seed: {mean(gains):+.4f}, standard error {error:.4f}")


def top1(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["top1"]


def deviation(values: list[float]) -> float:
    """Over seeds; not a number for one of them."""
    return stdev(values) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("outputs/feature_cache_bench"))
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seeds", type=int, default=5)
    # more epochs than views: with as many, both train on the same samples
    arguments.add_argument("--epochs", type=int, default=8, help="of every head")
    arguments.add_argument("--views", type=int, default=4, help="of each video, in the cache")
    arguments.add_argument("--encoder-epochs", type=int, default=28, help="of the run whose encoder they share")
    arguments.add_argument("--parts", nargs="+", choices=("speed", "accuracy"), default=["speed", "accuracy"])
    given = arguments.parse_args()
    if "speed" in given.parts:
        measure_speed(given.out, given.rounds)
    if "accuracy" in given.parts:
        measure_accuracy(given.out, given.seeds, given.epochs, given.views, given.encoder_epochs)
