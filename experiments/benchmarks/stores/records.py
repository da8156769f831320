"""How long a dataset of many records in tar files takes to open, the first time and later.

python experiments/benchmarks/stores/records.py [--records 10000000]

1,000 videos of 1 MB a tar file; these are empty but for their size, as only that is looked at.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from vidtrain.data.manifest.files import open_manifests
from vidtrain.data.prepared.shards import HEAD, SHARDS_FORMAT
from vidtrain.data.sources.shards import Shards

A_SHARD, VIDEO = 1000, 1_000_000


def write(folder: Path, split: str, records: int) -> list[dict[str, object]]:
    shards: list[dict[str, object]] = []
    with open(folder / f"{split}.csv", "w", encoding="utf-8") as listing:
        listing.write("path,label,group\n")
        for first in range(0, records, A_SHARD):
            name, count = f"{split}-{first // A_SHARD:06}.tar", min(A_SHARD, records - first)
            numbers = range(first, first + count)
            listing.writelines(
                f"{name}::{number:09}/{number:011x}.mp4@{512 + VIDEO * (number - first)}+{VIDEO - 512},"
                f"class {number % 400:03},{name}::{number:09}/{number:011x}.mp4@{512 + VIDEO * (number - first)}"
                f"+{VIDEO - 512}\n"
                for number in numbers
            )
            with open(folder / name, "wb") as file:
                os.truncate(file.fileno(), VIDEO * count)
            shards.append({"name": name, "bytes": VIDEO * count, "videos": count})
    return shards


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=10_000_000)
    records = parser.parse_args().records
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = {"train": records, "val": 1000}
        shards = [shard for split, count in splits.items() for shard in write(folder, split, count)]
        classes = [f"class {number:03}" for number in range(400)]
        head = {"format": SHARDS_FORMAT, "classes": classes, "label_separator": None, "splits": splits}
        (folder / HEAD).write_text(json.dumps(head | {"shards": shards}))
        for what in ("first", *3 * ["again"]):
            began = time.perf_counter()
            manifests = open_manifests(Shards(name), folder / "index")
            seconds, count = time.perf_counter() - began, len(manifests["train"])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            load = os.getloadavg()[0]
            print(
                f"{what}: {count:,} records in {seconds:.2f} s, at most {peak:,.0f} MB, load {load:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
