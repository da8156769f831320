"""From batches to the view table, and from the table to the report and its files."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidtrain.data.loading.dataset import Batch, Fault, collate
from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import metric_names
from vidtrain.evaluation.report import Report, report, write_report
from vidtrain.evaluation.views import BatchViews, ViewTable, view_table

CPU = torch.device("cpu")
NOTHING = torch.empty(0, dtype=torch.int64)


class ToFloat(nn.Module):
    def forward(self, clips: Tensor) -> Tensor:
        return clips.float()


class Shown(nn.Module):
    """A model whose logits are what it was shown: a clip's value, or for joint the values of all clips."""

    def __init__(self, fusion: str, num_classes: int = 2):
        super().__init__()
        self.fusion, self.num_classes = fusion, num_classes
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, clips: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.shapes.append(tuple(clips.shape))
        values = clips[:, :, 0, 0, 0, 0]
        if self.fusion == "joint":
            return values.unsqueeze(1)
        return torch.stack([values, -values], dim=-1).bfloat16()


def batch(values: list[list[int]], labels: list[int], indices: list[int], faults=()) -> Batch:
    """Clips of one pixel value per view; `values` are by video and view."""
    clips = torch.tensor(values, dtype=torch.uint8)[:, :, None, None, None, None].expand(-1, -1, 3, 2, 4, 4)
    seeds = torch.zeros(clips.shape[:2], dtype=torch.int64)
    return Batch(clips, torch.tensor(labels), torch.tensor(indices), seeds, list(faults))


def table_of(model: nn.Module, batches: list[Batch], total: int, crops: int = 1) -> ViewTable:
    return view_table(model, batches, ToFloat(), total, CPU, nullcontext(), crops)


class TestTable:
    def test_logits_of_every_view(self):
        model = Shown("mean_logits")
        table = table_of(model, [batch([[1, 2, 3], [4, 5, 6]], [1, 0], [0, 1])], total=2)
        assert table.logits.tolist() == [[[1, -1], [2, -2], [3, -3]], [[4, -4], [5, -5], [6, -6]]]
        assert table.logits.dtype == torch.float32
        assert (table.labels.tolist(), table.indices.tolist()) == ([1, 0], [0, 1])
        assert (table.missing, table.total, table.coverage) == ([], 2, "2/2")
        assert model.shapes == [(2, 3, 3, 2, 4, 4)]

    def test_order_is_by_index_whatever_the_batches(self):
        batches = [
            batch([[7], [1]], [1, 0], [7, 1]),
            batch([[9]], [1], [9]),
            batch([[3], [0]], [0, 1], [3, 0]),
        ]
        table = table_of(Shown("mean_probs"), batches, total=10)
        assert table.indices.tolist() == [0, 1, 3, 7, 9]
        assert table.logits[:, 0, 0].tolist() == [0, 1, 3, 7, 9]
        assert table.labels.tolist() == [1, 0, 0, 1, 1]
        assert table.coverage == "5/10"

    def test_crops_do_not_matter_where_clips_are_judged_alone(self):
        model = Shown("mean_logits")
        table = table_of(model, [batch([[1, 2, 3, 4]], [0], [0])], total=1, crops=2)
        assert table.logits[0, :, 0].tolist() == [1, 2, 3, 4]
        assert model.shapes == [(1, 4, 3, 2, 4, 4)]

    def test_joint_sees_all_clips_of_one_crop_at_a_time(self):
        """Views are clip-major: with 3 clips x 2 crops, tens are videos, units count views."""
        values = [[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]]
        model = Shown("joint", num_classes=3)
        table = table_of(model, [batch(values, [0, 2], [0, 1])], total=2, crops=2)
        assert model.shapes == [(4, 3, 3, 2, 4, 4)]
        assert table.logits.tolist() == [[[10, 12, 14], [11, 13, 15]], [[20, 22, 24], [21, 23, 25]]]

    def test_joint_with_one_crop_has_one_row(self):
        model = Shown("joint", num_classes=3)
        table = table_of(model, [batch([[1, 2, 3], [4, 5, 6]], [0, 2], [0, 1])], total=2)
        assert table.logits.tolist() == [[[1, 2, 3]], [[4, 5, 6]]]

    def test_missing_videos_are_named_and_not_judged(self):
        batches = [
            batch([[1]], [0], [1], [Fault("c.mp4", "the file is empty")]),
            Batch(NOTHING, NOTHING, NOTHING, NOTHING, [Fault("b.mp4", "cut"), Fault("a.mp4", "cut")]),
            batch([[2]], [1], [4]),
        ]
        model = Shown("mean_logits")
        table = table_of(model, batches, total=5)
        assert table.missing == [("a.mp4", "cut"), ("b.mp4", "cut"), ("c.mp4", "the file is empty")]
        assert (table.indices.tolist(), table.coverage) == ([1, 4], "2/5")
        assert len(model.shapes) == 2  # the empty batch never reached the model

    def test_all_missing(self):
        empty = collate([])._replace(faults=[Fault("a.mp4", "cut")])
        table = table_of(Shown("mean_logits", num_classes=2), [empty, empty], total=2)
        assert (len(table.indices), len(table.labels), table.coverage) == (0, 0, "0/2")
        assert table.logits.shape == (0, 1, 2)
        assert table.missing == [("a.mp4", "cut"), ("a.mp4", "cut")]
        with pytest.raises(UserError, match=r"none of the 2 videos .* a.mp4 \(cut\)"):
            report(table, "mean_logits", "center")

    def test_no_batches_at_all(self):
        """The share of a rank when there are more ranks than videos."""
        assert table_of(Shown("mean_logits"), [], total=1).coverage == "0/1"

    def test_refusal_ends_it(self):
        refused = collate([])._replace(refusal="a.mp4: the video is too short")
        with pytest.raises(UserError, match="a.mp4: the video is too short"):
            table_of(Shown("mean_logits"), [refused], total=1)

    def test_ranks_are_gathered(self, monkeypatch):
        """This rank and another: the whole table, by index."""
        logits = torch.tensor([[5.0, -5.0], [6.0, -6.0]]).view(2, 1, 1, 1, 2)
        other = [BatchViews(torch.tensor([0, 2]), torch.tensor([1, 1]), logits, [("a.mp4", "cut")])]

        def all_gather_object(shares, mine):
            shares[:] = [other, mine]

        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
        mine = [batch([[8], [9]], [0, 0], [1, 3], [Fault("z.mp4", "cut")])]
        table = table_of(Shown("mean_logits"), mine, total=6)
        assert table.indices.tolist() == [0, 1, 2, 3]
        assert table.labels.tolist() == [1, 0, 1, 0]
        assert table.logits[:, 0, 0].tolist() == [5, 8, 6, 9]
        assert (table.missing, table.coverage) == ([("a.mp4", "cut"), ("z.mp4", "cut")], "4/6")


CLASSES = ("jump", "run", "sit")
PATHS = ("v/a.mp4", "v/b.mp4", "v/c.mp4", "v/d.mp4")


@pytest.fixture
def found() -> Report:
    """Three of four videos with two views each; the second video is missing, the last one wrong."""
    probabilities = [
        [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]],  # jump, both views right
        [[0.1, 0.3, 0.6], [0.1, 0.7, 0.2]],  # sit, one view right: run 0.5, sit 0.4
        [[0.1, 0.6, 0.3], [0.1, 0.8, 0.1]],  # run, both views right
    ]
    logits = torch.tensor(probabilities).log()
    table = ViewTable(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), logits, [("v/b.mp4", "the file is empty")], 4)
    return report(table, "mean_probs", "clips=2 crops=1")


class TestReport:
    def test_metrics_of_videos_and_of_views(self, found):
        """Loss: videos -(ln .6 + ln .4 + ln .7) / 3, views -(ln .7 .5 .6 .2 .6 .8) / 6."""
        assert found.metrics == pytest.approx(
            {
                "loss": 0.594597,
                "top1": 2 / 3,
                "balanced_accuracy": 2 / 3,
                "precision_macro": 1 / 2,
                "precision_weighted": 1 / 2,
                "recall_macro": 2 / 3,
                "recall_weighted": 2 / 3,
                "f1_macro": 5 / 9,
                "f1_weighted": 5 / 9,
                "clip_loss": 0.650676,
                "clip_top1": 5 / 6,
            },
            abs=1e-6,
        )

    def test_the_rest(self, found):
        assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
        torch.testing.assert_close(
            found.probabilities, torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4], [0.1, 0.7, 0.2]])
        )
        assert (found.coverage, found.protocol) == ("3/4", "clips=2 crops=1")

    def test_every_metric_has_a_direction(self):
        """Top-5 needs more than five classes; the order of names is free."""
        for classes in (5, 6):
            table = ViewTable(torch.arange(4), torch.arange(4), torch.randn(4, 2, classes), [], 4)
            assert set(report(table, "mean_logits", "").metrics) == set(metric_names(classes, False))
        several = ViewTable(torch.arange(4), torch.eye(4), torch.randn(4, 2, 4), [], 4)
        assert set(report(several, "mean_logits", "", True).metrics) == set(metric_names(4, True))


class TestFiles:
    def test_metrics_json(self, found, tmp_path):
        write_report(found, tmp_path / "new" / "folder", PATHS, CLASSES)
        text = (tmp_path / "new" / "folder" / "metrics.json").read_text()
        assert text.endswith("}\n")
        [reliability] = found.reliability
        assert json.loads(text) == {
            "calibrated": False,
            "reliability": [reliability],
            "metrics": found.metrics,
            "coverage": "3/4",
            "protocol": "clips=2 crops=1",
            "missing": [{"path": "v/b.mp4", "cause": "the file is empty"}],
        }

    def test_tables(self, found, tmp_path):
        write_report(found, tmp_path, PATHS, CLASSES)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "confusion.csv",
            "logits.npz",
            "metrics.json",
            "per_class.csv",
            "predictions.csv",
        ]
        assert (tmp_path / "predictions.csv").read_text().splitlines() == [
            "path,label,prediction,correct,top1,p1,top2,p2,top3,p3",
            "v/a.mp4,jump,jump,1,jump,0.600000,run,0.300000,sit,0.100000",
            "v/c.mp4,sit,run,0,run,0.500000,sit,0.400000,jump,0.100000",
            "v/d.mp4,run,run,1,run,0.700000,sit,0.200000,jump,0.100000",
        ]
        assert (tmp_path / "confusion.csv").read_text().splitlines() == [
            "label \\ prediction,jump,run,sit",
            "jump,1,0,0",
            "run,0,1,0",
            "sit,0,1,0",
        ]
        assert (tmp_path / "per_class.csv").read_text().splitlines() == [
            "class,support,precision,recall,f1",
            "jump,1,1.0,1.0,1.0",
            "run,1,0.5,1.0,0.6666666666666666",
            "sit,1,,0.0,0.0",
        ]

    def test_logits(self, found, tmp_path):
        write_report(found, tmp_path, PATHS, CLASSES)
        with np.load(tmp_path / "logits.npz") as stored:
            assert torch.equal(torch.from_numpy(stored["logits"]), found.logits)
            assert stored["classes"].tolist() == list(CLASSES) and not stored["independent"]
        found.logits[0, 0] = float("nan")  # no probability follows from it
        write_report(found, tmp_path, PATHS, CLASSES)
        assert not (tmp_path / "logits.npz").exists()

    def test_five_best_of_more_classes(self, tmp_path):
        logits = torch.tensor([0.05, 0.3, 0.25, 0.1, 0.2, 0.04, 0.06]).log().view(1, 1, 7)
        table = ViewTable(torch.tensor([0]), torch.tensor([4]), logits, [], 1)
        write_report(report(table, "mean_logits", ""), tmp_path, ["a,b.mp4"], list("ABCDEFG"))
        assert (tmp_path / "predictions.csv").read_text().splitlines() == [
            "path,label,prediction,correct,top1,p1,top2,p2,top3,p3,top4,p4,top5,p5",
            '"a,b.mp4",E,B,0,B,0.300000,C,0.250000,E,0.200000,D,0.100000,G,0.060000',
        ]
