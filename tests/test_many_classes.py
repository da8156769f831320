"""Reports and pictures of very many classes, in a process of their own: what they take may not grow with k * k."""

import json
import subprocess
import sys

import pytest

REPORT = """
import json, resource, sys, time
from pathlib import Path
import torch
from vidtrain.evaluation.report import report, write_report
from vidtrain.evaluation.views import ViewTable
from vidtrain.reports.plots import plot_confusion
from vidtrain.training.losses import ClassSums

k, out = int(sys.argv[1]), Path(sys.argv[2])
draw = torch.Generator().manual_seed(0)
labels = torch.randint(k, (300,), generator=draw)
logits = torch.randn(300, 1, k, generator=draw)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
before, began = peak(), time.perf_counter()
found = report(ViewTable(torch.arange(300), labels, logits, [], 300), "mean_logits", "")
sums = ClassSums.of_classes(k, False, torch.device("cpu"))
sums.add(torch.tensor([1.0]), logits[:8].transpose(0, 1), labels[:8])
sums.metrics(loss_scale=None)
classes = [f"class {number}" for number in range(k)]
write_report(found, out, [f"{number}.mp4" for number in range(300)], classes)
pairs = found.confusion.labels, found.confusion.predictions, found.confusion.counts
plot_confusion(tuple(each.numpy() for each in pairs), classes, out / "confusion.png")
print(json.dumps({"gigabytes": peak() - before, "seconds": time.perf_counter() - began}))
"""


@pytest.mark.slow
def test_what_a_report_takes_does_not_grow_with_the_square_of_the_classes(tmp_path):
    """A matrix of 21,000 classes by 21,000 takes 3.5 GB, and its picture took more than ten times that."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, "21000", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["gigabytes"] < 1.0
    made = sorted(path.name for path in tmp_path.iterdir())
    tables = ["metrics.json", "per_class.csv", "predictions.csv"]
    assert made == ["confusion.png", "confusion_pairs.csv", *tables]
    assert (tmp_path / "confusion.png").stat().st_size < 2e6
    rows = (tmp_path / "confusion_pairs.csv").read_text().splitlines()
    assert rows[0] == "label,prediction,videos" and len(rows) <= 301
    assert sum(int(row.rpartition(",")[2]) for row in rows[1:]) == 300
