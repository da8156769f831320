"""Processor time from a command line to its answer, and of imports beside `import torch`: medians, in turn.

python experiments/benchmarks/startup/bench.py [ROUNDS]
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile

TORCH = ["-c", "import torch"]
CASES = {
    "import torch": TORCH,
    "import vidtrain.training.loop": ["-c", "import vidtrain.training.loop"],
    "import vidtrain.app.check, which finds faults": ["-c", "import vidtrain.app.check"],
    "import vidtrain.runs.assemble, which a run is made of": ["-c", "import vidtrain.runs.assemble"],
    "train --help": ["-m", "vidtrain.train", "--help"],
    "train trainer.epohcs=3": ["-m", "vidtrain.train", "trainer.epohcs=3"],
    "evaluate --help": ["-m", "vidtrain.evaluate", "--help"],
    "predict checkpiont=x": ["-m", "vidtrain.predict", "checkpiont=x"],
}


def processor_seconds(arguments: list[str], folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[str, list[float]] = {case: [] for case in CASES}
        for _ in range(rounds):
            for case, arguments in CASES.items():
                seconds[case].append(processor_seconds(arguments, folder))
    torch = seconds["import torch"]
    print("| case | processor seconds | / import torch |\n|---|---|---|")
    for case, measured in seconds.items():
        ratio = statistics.median(own / base for own, base in zip(measured, torch, strict=True))
        print(f"| {case} | {statistics.median(measured):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
