"""What attributes of files tell of the class, on numbers that can be worked out."""

import numpy as np
import pytest

from vidtrain.data.audit.findings import Entry, shortcuts
from vidtrain.data.audit.inspection import Inspection


def dataset(rows):
    """Entries and inspections of rows (class, rate, width), one file each."""
    records = [Entry(str(n), "train", (name,), f"group {n}") for n, (name, _, _) in enumerate(rows)]
    found = {
        str(n): Inspection(1000, width=width, height=64, rate=rate, duration=4.0, codec="h264")
        for n, (_, rate, width) in enumerate(rows)
    }
    return records, found


def test_a_rate_that_tells_two_of_five_classes_apart_from_the_rest():
    """Two classes at 30 and three at 25: the best guess is right in 2 of 5."""
    rows = [(name, 30.0 if name in "ab" else 25.0, 320) for name in "abcde" for _ in range(80)]
    found = {each.attribute: each for each in shortcuts(*dataset(rows))}
    rate = found["frame rate"]
    assert (rate.values, rate.baseline, rate.fitted, rate.called_out) == (2, 0.2, 0.4, True)
    assert rate.accuracy == pytest.approx(0.4, abs=0.02)
    tells = [(each.name, each.value, each.of_class, each.of_value, each.lift) for each in rate.giveaways]
    assert tells == [("a", "30.00/s", 1.0, 0.5, 2.5), ("b", "30.00/s", 1.0, 0.5, 2.5)]
    assert found["frame size"].gain == pytest.approx(0.0, abs=1e-9)  # all have the same
    assert not any(each.called_out for name, each in found.items() if name != "frame rate")


def test_chance_is_not_called_out():
    rng = np.random.default_rng(0)
    rows = [(name, float(rng.integers(10, 60)), int(rng.integers(1, 400))) for name in "abcd" for _ in range(50)]
    for each in shortcuts(*dataset(rows)):
        assert not each.called_out and abs(each.gain) < 0.1
    size = next(each for each in shortcuts(*dataset(rows)) if each.attribute == "frame size")
    assert size.fitted > 0.6  # what fitting to all would have claimed


def test_a_group_never_stands_in_both_halves():
    """Every group has a rate of its own, which tells nothing of another group."""
    rows = [("ab"[n % 2], 10.0 + n, 320) for n in range(40) for _ in range(5)]
    records, found = dataset(rows)
    grouped = [Entry(each.path, each.split, each.classes, f"g{n // 5}") for n, each in enumerate(records)]
    rate = next(each for each in shortcuts(grouped, found) if each.attribute == "frame rate")
    assert rate.fitted == 1.0
    assert rate.accuracy == pytest.approx(0.5, abs=0.05)


def test_nothing_is_said_of_one_class_of_several_labels_or_of_no_file():
    records, found = dataset([("a", 25.0, 320)] * 4)
    assert shortcuts(records, found) == []
    assert shortcuts([*records, Entry("0", "val", ("a", "b"), "g")], found) == []
    assert shortcuts(records, {path: Inspection(0, cause="empty") for path in found}) == []
