import numpy as np
import pytest

from vidtrain.data.manifest import Manifest, Record, check_same_classes
from vidtrain.errors import UserError

RECORDS = [Record("a.mp4", 0, "a"), Record("b.mp4", 1, "b"), Record("c.mp4", 1, "b")]


def test_reads_like_a_sequence():
    manifest = Manifest(RECORDS, ["jump", "run"])
    assert len(manifest) == 3
    assert manifest[2] == Record("c.mp4", 1, "b")
    assert manifest.classes == ("jump", "run")
    assert manifest.labels.dtype == np.int64
    assert manifest.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("records", "classes", "message"),
    [
        (RECORDS, [], "names no classes"),
        ([], ["jump"], "holds no videos of its 1 classes"),
        (RECORDS, ["jump"], r"b\.mp4: label 1 is outside 0\.\.0"),
        ([Record("a.mp4", -1, "a")], ["jump"], r"a\.mp4: label -1 is outside"),
        (RECORDS, ["jump", "run", "jump"], "more than once: jump"),
    ],
)
def test_refuses_what_is_no_dataset(records, classes, message):
    with pytest.raises(UserError, match=message):
        Manifest(records, classes)


def test_splits_must_share_their_classes():
    train = Manifest(RECORDS, ["jump", "run"])
    check_same_classes({"train": train, "val": Manifest(RECORDS, ["jump", "run"])})
    with pytest.raises(UserError, match="'val' differ from those of 'train': missing jump; extra swim, walk"):
        check_same_classes({"train": train, "val": Manifest(RECORDS, ["run", "swim", "walk"])})
    with pytest.raises(UserError, match="the same names in another order"):
        check_same_classes({"train": train, "val": Manifest(RECORDS, ["run", "jump"])})
