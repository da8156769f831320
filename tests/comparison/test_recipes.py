"""Which settings tell runs apart."""

import pytest

from vidtrain.comparison.recipes import differing, label, labels, recipes, short_names

IGNORED = ("seed", "logger")


def grouped(*runs: tuple[dict, tuple[str, ...]]):
    settings, overrides = [run for run, _ in runs], [said for _, said in runs]
    keys, found = recipes(settings, overrides, [None] * len(runs), IGNORED)
    told = labels(found, [each.number for each in found])
    return keys, [(told[each.number], each.runs) for each in found]


def test_seeds_are_repeats():
    runs = [({"optimizer.lr": lr, "seed": seed, "logger.mode": seed}, ()) for seed in (0, 1) for lr in (0.1, 0.2)]
    assert grouped(*runs) == (
        {"optimizer.lr": [0.1, 0.2, 0.1, 0.2]},
        [("lr=0.1", [0, 2]), ("lr=0.2", [1, 3])],
    )


def test_a_setting_that_others_lack():
    assert differing([{"a": 1, "b": 2}, {"a": 1}], ()) == {"b": [2, "absent"]}


def test_what_follows_from_an_option_stands_under_its_group():
    crop = {"augmentation.train.scale": 2, "augmentation.train.flip": True, "optimizer.lr": 0.1}
    none = {"augmentation.train.scale": 1, "optimizer.lr": 0.1}
    keys, found = grouped((crop, ("augmentation=crop",)), (none, ("augmentation=none",)))
    assert keys == {"augmentation": ["crop", "none"]}
    assert [name for name, _ in found] == ["augmentation=crop", "augmentation=none"]


def test_an_option_that_is_not_named():
    keys, _ = grouped(({"model.depth": 3}, ()), ({"model.depth": 6}, ("model=small",)))
    assert keys == {"model": ["default", "small"]}


def test_naming_the_default_makes_no_difference():
    runs = [({"model.depth": 3, "lr": 1}, ()), ({"model.depth": 3, "lr": 1}, ("model=tiny",)),
            ({"model.depth": 6, "lr": 1}, ("model=small",))]  # fmt: skip
    keys, found = grouped(*runs)
    assert keys == {"model": ["tiny", "tiny", "small"]}
    assert found == [("model=tiny", [0, 1]), ("model=small", [2])]


def test_a_value_that_is_set_within_a_group_stands_for_itself():
    runs = [
        ({"model.depth": depth, "model.width": width}, (f"model={name}", f"model.depth={depth}"))
        for name, width in (("a", 1), ("b", 2))
        for depth in (3, 4)
    ]
    keys, found = grouped(*runs)
    assert keys == {"model": ["a", "a", "b", "b"], "model.depth": [3, 4, 3, 4]}
    assert found[1][0] == "model=a, depth=4"


def test_an_experiment_stands_for_all_that_it_sets():
    runs = [({"clip.frames": 8, "clip.frame_order": "forward"}, ("experiment=baseline",)),
            ({"clip.frames": 8, "clip.frame_order": "single_frame"}, ("experiment=single_frame",))]  # fmt: skip
    assert grouped(*runs)[0] == {"experiment": ["baseline", "single_frame"]}


def test_a_setting_that_repeats_another_is_left_out():
    runs = [({"clip.size": size, "model.image_size": size}, (f"clip.size={size}",)) for size in (32, 64)]
    assert grouped(*runs)[0] == {"clip.size": [32, 64]}


def test_differences_that_no_override_tells_of_are_not_hidden():
    runs = [
        ({"optimizer.lr": lr, "trainer.epochs": epochs}, (f"optimizer.lr={lr}",)) for lr, epochs in ((1, 3), (2, 9))
    ]
    assert grouped(*runs)[0] == {"optimizer.lr": [1, 2], "trainer.epochs": [3, 9]}


def test_what_must_stay_apart():
    _, found = recipes([{"a": 1}] * 3, [()] * 3, ["test", "val", "test"], ())
    assert [each.runs for each in found] == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["optimizer.lr", "clip.size"], ["lr", "size"]),
        (["model.encoder.depth", "model.head.depth"], ["encoder.depth", "head.depth"]),
        (["model", "other.model"], ["model", "other.model"]),
        (["lr"], ["lr"]),
    ],
)
def test_short_names(keys, names):
    assert list(short_names(keys).values()) == names


def test_labels():
    assert (
        label({"lr": 0.001, "flip": True, "fps": None, "clip": [1, 2]}) == "lr=0.001, flip=true, fps=null, clip=[1, 2]"
    )
    assert label(dict.fromkeys("abcdef", 1)) == "a=1, b=1, c=1, and 3 more"


def test_compared_recipes_are_told_by_what_differs_between_them():
    runs = [{"lr": lr, "clips": clips} for lr, clips in ((1, 1), (2, 1), (2, 4))]
    _, found = recipes(runs, [()] * 3, [None] * 3, ())
    assert labels(found, [1, 2]) == {1: "lr=1", 2: "lr=2", 3: "lr=2, clips=4"}
    assert labels(found, [3]) == {1: "lr=1, clips=1", 2: "lr=2, clips=1", 3: "lr=2, clips=4"}


def test_long_keys_are_cut():
    assert label({"drop_path_of_all_blocks": 0.12345}) == "drop_path_of_al…=0.1235"
