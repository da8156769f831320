"""The picture of a view table, for whatever the table holds."""

from types import SimpleNamespace

import pytest
from PIL import Image

from vidtrain.reports.view_charts import plot_views

ABOUT = {
    "orders": ["forward", "reversed"],
    "crops": ["left or top", "center", "right or bottom"],
    "classes": ["run", "sit"],
    "frames": {"forward": "8x3 frames at 32x32"},
    "split": "test",
    "coverage": "20/20",
}


def protocol(clips, crops, fusion="mean_logits", order="forward", top1=0.5):
    numbers = SimpleNamespace(numbers=tuple(range(crops)))
    return SimpleNamespace(
        num_clips=clips,
        crops=numbers,
        fusion=fusion,
        order=order,
        metrics={"top1": top1},
        name=f"{clips}x{crops}",
    )


def point(clips, crops):
    return SimpleNamespace(clips=clips, crops=crops, mean=0.5 + 0.1 * clips, lowest=0.4, highest=0.9)


SEVERAL = [protocol(c, s, fusion) for c in (1, 2) for s in (1, 3) for fusion in ("mean_logits", "vote")]
POINTS = [point(c, s) for s in (1, 3) for c in (1, 2)]
PROBES = [SimpleNamespace(protocol=protocol(2, 3, order=order, top1=top1)) for order, top1 in
          (("forward", 0.9), ("reversed", 0.0))]  # fmt: skip


@pytest.mark.parametrize(
    ("protocols", "points", "probes", "panels"),
    [
        (SEVERAL, POINTS, PROBES, 3),
        (SEVERAL, POINTS, [], 2),
        ([protocol(1, 1), protocol(1, 1, "vote")], [point(1, 1)], PROBES, 1),
        ([protocol(4, 1, "joint"), protocol(4, 3, "joint")], [], [], 1),
    ],
    ids=["all", "no_probes", "one_view", "joint"],
)
def test_it_has_a_panel_for_all_that_there_is_to_show(tmp_path, protocols, points, probes, panels):
    plot_views(ABOUT, protocols, points, probes, "mean_logits", "top1", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        width, height = picture.size
    assert width == pytest.approx(panels * 760, rel=0.1) and height > 400
