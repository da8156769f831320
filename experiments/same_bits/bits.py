"""Hashes the files of seeded runs that the code of any checkout made, and compares two such sets of hashes.

python experiments/same_bits/bits.py run CHECKOUT OUT [CASE ...]    # trains all cases, or those named: OUT/bits.json
python experiments/same_bits/bits.py hash OUT                      # hashes existing runs again
python experiments/same_bits/bits.py compare OUT_A OUT_B            # status 1, and the names, where a hash differs
"""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

SHORT = [
    "trainer.epochs=2",
    "trainer.steps_per_epoch=10",
    "trainer.max_eval_videos=40",
    "trainer.log_every=1",
]
CASES: dict[str, list[str]] = {
    "default": ["trainer.epochs=2"],
    "accumulation": [*SHORT, "trainer.accumulation=2"],
    "ema": [*SHORT, "trainer.ema=0.9"],
    "fp16": [*SHORT, "trainer.precision=fp16"],
    "bf16": [*SHORT, "trainer.precision=bf16", "trainer.clip_grad_by=value"],
    "mixing": [*SHORT, "augmentation=strong_mixing", "model.encoder.drop_path=0.1", "optimizer=sgd"],
    "head_grid": [*SHORT, "stage=head_grid"],
    "cached": [
        *SHORT,
        "stage=head_only",
        "stage.head_only.cache_features=true",
        "stage.head_only.cache_views=2",
    ],
    "head_then_last": [*SHORT, "stage=head_then_last", "trainer.patience=1"],
    "two_ranks": [*SHORT, "trainer.epochs=1"],
    "killed": [*SHORT, "trainer.save_every=3it"],
}
# Fields that depend on the clock, the machine or the name of a folder
TIMED = ("time/", "memory/", "train/clips_per_s", "train/data_share", "seconds")


def train(checkout: Path, folder: Path, data: Path, overrides: list[str], ranks: int = 1) -> subprocess.Popen:
    """Starts a seeded run of `checkout` in `folder`."""
    program = ["-m", "vidtrain.train"]
    if ranks > 1:
        program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *program]
    common = [f"run_dir={folder}", f"data_root={data}", "logger=none", "trainer.cpu_threads=1", "seed=3"]
    common += [f"data.features_root={folder / 'features'}", "trainer.device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    with open(f"{folder}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *program, *common, *overrides],
            cwd=checkout,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def kill_after(process: subprocess.Popen, checkpoint: Path) -> None:
    """Ends `process` with SIGKILL as soon as `checkpoint` is there."""
    while not checkpoint.is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def run_case(name: str, checkout: Path, out: Path, data: Path) -> dict[str, str]:
    folder = out / name
    process = train(checkout, folder, data, CASES[name], ranks=2 if name == "two_ranks" else 1)
    if name == "killed":
        kill_after(process, folder / "checkpoints/last.pt")
        process = train(checkout, folder, data, CASES[name])
    if process.wait() != 0:
        raise SystemExit(f"{name} ended with status {process.returncode}; see {folder}.log")
    return hashes(folder)


def hashes(folder: Path) -> dict[str, str]:
    """Hashes of the checkpoints' content, the metrics, the steps of every rank, and the predictions on test."""
    found = {}
    for checkpoint in ("last", "best"):
        payload = torch.load(folder / f"checkpoints/{checkpoint}.pt", weights_only=True)
        for part in ("model", "ema", "heads", "optimizer", "sums"):
            if payload.get(part) is not None:
                found[f"{checkpoint}.pt {part}"] = digest(payload[part])
    with open(folder / "metrics.jsonl") as file:
        found["metrics.jsonl"] = digest([untimed(json.loads(line)) for line in file])
    for path in sorted(folder.glob("steps_rank*.csv")):
        with open(path, newline="") as file:
            found[path.name] = digest([untimed(row) for row in csv.DictReader(file)])
    [predictions] = folder.glob("eval/*/predictions.csv")
    found["predictions"] = hashlib.sha256(predictions.read_bytes()).hexdigest()[:16]
    return found


def untimed(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith(TIMED)}


def digest(value: object) -> str:
    """A hash of nested containers, with the type, shape and bytes of every tensor."""
    total = hashlib.sha256()

    def take(part: object) -> None:
        if isinstance(part, torch.Tensor):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            total.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key, inner in part.items():
                total.update(repr(key).encode())
                take(inner)
        elif isinstance(part, list | tuple):
            for inner in part:
                take(inner)
        else:
            total.update(repr(part).encode())

    take(value)
    return total.hexdigest()[:16]


def run(checkout: Path, out: Path, names: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "bits.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for name in names or list(CASES):
        started = time.perf_counter()
        results[name] = run_case(name, checkout, out, out.parent / "data")
        file.write_text(json.dumps(results, indent=1))
        print(f"{name}: {time.perf_counter() - started:.0f} s {results[name]}", flush=True)


def compare(one: Path, other: Path) -> int:
    first, second = (json.loads((folder / "bits.json").read_text()) for folder in (one, other))
    different = [
        f"{case}: {part}"
        for case in sorted(first.keys() | second.keys())
        for part in sorted(first.get(case, {}).keys() | second.get(case, {}).keys())
        if first.get(case, {}).get(part) != second.get(case, {}).get(part)
    ]
    print("\n".join(different) or f"{len(first)} cases, {sum(map(len, first.values()))} hashes: all equal")
    return 1 if different else 0


def hash_again(out: Path) -> None:
    folders = [out / name for name in CASES if (out / name / "summary.json").is_file()]
    (out / "bits.json").write_text(json.dumps({folder.name: hashes(folder) for folder in folders}, indent=1))


if __name__ == "__main__":
    command, first, *rest = sys.argv[1:]
    if command == "compare":
        sys.exit(compare(Path(first), Path(rest[0])))
    elif command == "hash":
        hash_again(Path(first))
    else:
        run(Path(first).resolve(), Path(rest[0]).resolve(), rest[1:])
