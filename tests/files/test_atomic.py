import math
import resource
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.files.atomic import read_json, strict_json, write_json_atomic, write_text_atomic


def test_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_text_atomic(path, "old")
    write_text_atomic(path, "new ü\n")
    assert path.read_bytes() == "new ü\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_text_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "a" * 100_000 + "\ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_text_atomic(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # what it is like on a full disk
    try:
        with pytest.raises(UserError, match=r"summary\.json \(File too large\)"):
            write_text_atomic(path, "new" * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_non_finite_numbers_become_null_at_any_depth():
    value = {"a": math.nan, "b": [1, math.inf, 0.5], "c": {"d": -math.inf, "e": "x", "f": None, "g": True}}
    assert strict_json(value) == ('{"a": null, "b": [1, null, 0.5], "c": {"d": null, "e": "x", "f": null, "g": true}}')


def test_json_file_is_indented(tmp_path: Path):
    write_json_atomic(tmp_path / "a.json", {"top1": 0.5})
    assert (tmp_path / "a.json").read_text() == '{\n  "top1": 0.5\n}\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read .*No such file"),
        ('{"id": ', "cannot be read .Expecting value"),
        ("[1]", "it holds no mapping"),
        ('{"name": 1}', "has no id: "),
    ],
)
def test_a_json_file_that_is_not_what_was_written_is_named_with_what_to_do(tmp_path: Path, text, why):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"run.json.*{why}.*; name another$"):
        read_json(path, "name another", ["id"])


def test_what_was_written_is_read(tmp_path: Path):
    write_json_atomic(tmp_path / "a.json", {"id": 1, "more": None})
    assert read_json(tmp_path / "a.json", "", ["id"]) == {"id": 1, "more": None}
