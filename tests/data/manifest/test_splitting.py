from collections import Counter, defaultdict

import numpy as np
import pytest

from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.manifest.splitting import groups_by, hold_out, shares_of, split_indices, split_manifest
from vidtrain.data.sources.folders import ClassFolders
from vidtrain.errors import UserError

EIGHT_ONE_ONE = {"train": 0.8, "val": 0.1, "test": 0.1}


def singles(*counts):
    """A manifest of `counts` videos of each class, all on their own."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return Manifest(
        [Record(str(i), label, str(i)) for i, label in enumerate(labels)],
        [f"c{i}" for i in range(len(counts))],
    )


def table(manifest, found):
    return [np.bincount(manifest.labels[each], minlength=len(manifest.classes)).tolist() for each in found.values()]


def test_single_videos_keep_their_shares_exactly():
    manifest = Manifest([Record(str(i), i % 4, str(i)) for i in range(400)], "abcd")
    assert table(manifest, split_indices(manifest, EIGHT_ONE_ONE, 0)) == [[80] * 4, [10] * 4, [10] * 4]


def test_every_record_is_in_one_split_in_order():
    found = split_indices(singles(40, 30, 31), EIGHT_ONE_ONE, 3)
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(101))
    assert all(each.tolist() == sorted(each.tolist()) for each in found.values())


def test_the_seed_decides_alone():
    manifest = singles(100, 50)
    first, again, other = (split_indices(manifest, EIGHT_ONE_ONE, seed)["val"].tolist() for seed in (5, 5, 6))
    assert first == again != other
    assert first == [7, 8, 12, 18, 42, 51, 55, 57, 70, 79, 105, 128, 129, 131, 135]  # in every process


def test_small_classes_even_out_over_all():
    """Five videos a class give no 0.5: val and test take turns."""
    train, val, test = table(manifest := Manifest(
        [Record(str(i), i % 40, str(i)) for i in range(200)], list(map(str, range(40)))
    ), split_indices(manifest, EIGHT_ONE_ONE, 0))  # fmt: skip
    assert 18 <= sum(val) <= 22 and 18 <= sum(test) <= 22
    assert set(train) <= {3, 4, 5}


def test_train_gets_every_class_where_there_are_groups_enough():
    train, *_ = table(manifest := singles(1, 1, 1, 1, 30), split_indices(manifest, EIGHT_ONE_ONE, 0))
    assert min(train) > 0


def test_one_video_a_class_still_fills_every_split():
    train, val, test = table(manifest := singles(1, 1, 1, 1, 1, 1), split_indices(manifest, EIGHT_ONE_ONE, 0))
    assert (sum(train), sum(val), sum(test)) == (4, 1, 1)


def test_groups_stay_whole():
    rng = np.random.default_rng(0)
    records = [Record(str(i), int(rng.integers(5)), f"g{rng.integers(60)}") for i in range(1000)]
    manifest = Manifest(records, "abcde")
    found = split_manifest(manifest, EIGHT_ONE_ONE, 0)
    where = defaultdict(set)
    for name, part in found.items():
        for record in part:
            where[record.group].add(name)
    assert set(map(len, where.values())) == {1}
    assert 780 <= len(found["train"]) <= 820


def test_parts_of_one_file_are_one_group():
    records = [Record(f"{i // 4}", 0, f"{i // 4}", start=float(i % 4)) for i in range(80)]
    found = split_manifest(Manifest(records, "a"), EIGHT_ONE_ONE, 0)
    assert not set(found["train"].paths) & set(found["val"].paths)
    assert [len(each) for each in found.values()] == [64, 8, 8]


def test_several_labels_all_count():
    records = [Record(str(i), i % 2, str(i), (i % 2, 2) if i % 5 == 0 else ()) for i in range(200)]
    found = split_manifest(Manifest(records, "abc"), EIGHT_ONE_ONE, 0)
    assert [Counter(label for record in each for label in record.labels)[2] for each in found.values()] == [
        32,
        4,
        4,
    ]


def test_ucf101_by_group(shared_data):
    source = ClassFolders(
        str(shared_data / "ucf101_5" / "videos"), split=[0.8, 0.1, 0.1], group_pattern=r"v_(\w+)_g(\d+)_"
    )
    manifests = source.manifests()
    groups = [set(each.columns.group_names) for each in manifests.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    counts = [np.bincount(each.labels) for each in manifests.values()]
    # of 80 a class, in groups of up to 7
    assert np.abs(counts[0] - 64).max() <= 2 and np.abs(counts[1] - 8).max() <= 2 and np.abs(counts[2] - 8).max() <= 2


def test_hold_out_leaves_test_alone():
    manifests = {"train": singles(90, 10), "test": singles(3, 3)}
    found = hold_out(manifests, 0.1, 0)
    assert list(found) == ["train", "val", "test"]
    assert found["val"].labels.tolist() == [0] * 9 + [1]
    assert found["test"] is manifests["test"]
    with pytest.raises(UserError, match="val_share=1.5: must lie between 0 and 1"):
        hold_out(manifests, 1.5, 0)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.8, 0.3, 0.1), r"\[0.8, 0.3, 0.1\] of train, val, test must be 0 or more and sum to 1"),
        ((1.1, -0.1, 0), "must be 0 or more"),
        ((0.5, 0.5), "must be three"),
        ((1, 0, 0), "leave nothing for val"),
        ((0, 0.5, 0.5), "leave nothing for train"),
    ],
)
def test_shares_must_be_shares(shares, message):
    with pytest.raises(UserError, match=message):
        shares_of(shares)


def test_a_share_of_zero_is_no_split():
    assert shares_of([0.9, 0.1, 0]) == {"train": 0.9, "val": 0.1}


def test_too_few_groups():
    manifest = Manifest([Record(str(i), 0, f"g{i % 2}") for i in range(10)], "a")
    with pytest.raises(UserError, match="2 groups .* train, val, test"):
        split_indices(manifest, EIGHT_ONE_ONE, 0)


def test_group_patterns():
    names = ["Diving/v_Diving_g01_c02.avi", "Swing/v_Swing_g25_c01.avi"]
    assert groups_by(r"_g(\d+)_", names) == ["01", "25"]
    assert groups_by(r"v_(\w+)_g(\d+)_", names) == ["Diving/01", "Swing/25"]
    assert groups_by(r"_g\d+_", names) == ["_g01_", "_g25_"]
    with pytest.raises(UserError, match="every video; it is not in 1 of 2, such as x.avi"):
        groups_by(r"_g(\d+)_", [names[0], "x.avi"])
    with pytest.raises(UserError, match=r"group_pattern='\('"):
        groups_by("(", [])
