import errno
import resource
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.files.atomic import JsonLines, StepTable, read_json_lines


def test_json_line_can_be_read_at_once(tmp_path: Path):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 1, "loss": float("nan")})
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1, "loss": null}\n'
    assert read_json_lines(tmp_path / "m.jsonl") == [{"step": 1, "loss": None}]


def test_torn_last_line_is_not_read_and_not_continued(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 1}]
    JsonLines(path).append({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_damaged_line_is_named(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"m\.jsonl, line 2 is damaged"):
        read_json_lines(path)


def test_keep_drops_rows_and_the_ledger_goes_on(tmp_path: Path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        lines.append({"step": step})
    lines.keep(lambda row: row["step"] <= 1)
    lines.append({"step": 2, "again": True})
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1}\n{"step": 2, "again": true}\n'


def test_keep_of_an_absent_file_makes_none(tmp_path: Path):
    JsonLines(tmp_path / "m.jsonl").keep(lambda row: True)
    assert not list(tmp_path.iterdir())


def test_odd_file_names_come_back(tmp_path: Path):
    lines = JsonLines(tmp_path / "m.jsonl")
    row = {"path": "a\u2028b\x85c\nd ü \udcff"}  # the last is a byte of a name that is not UTF-8
    lines.append(row)
    assert read_json_lines(tmp_path / "m.jsonl") == [row]


@pytest.fixture
def room():
    """Limits the size of files: `room(bytes)` is what a full disk is like, `room(None)` frees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)


def test_a_full_disk_is_reported_once_by_name(tmp_path: Path, room):
    table = StepTable(tmp_path / "steps.csv", flush_every=2)
    table.append({"step": 1})
    room(5)  # the header's own size
    with pytest.raises(UserError, match=r"steps\.csv \(File too large\), 2 rows"):
        table.append({"step": 2})
    table.close()
    assert (tmp_path / "steps.csv").read_text() == "step\n"


@pytest.mark.parametrize(
    "size, kept, trouble",
    [
        (12, 1, "File too large"),
        (15, 1, "there is no space for a whole row"),  # of the second row, three bytes
        (30, 2, "there is no space for a whole row"),
        (0, 0, "File too large"),
    ],
)
def test_rows_wait_for_room_and_no_half_of_one_stays(tmp_path: Path, room, size: int, kept: int, trouble: str):
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path, most_held=10)
    room(size)
    for step in (1, 2, 3):
        lines.append({"step": step})  # twelve bytes
    lines.flush()
    assert lines.trouble == trouble
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)[:kept])
    room(None)
    lines.append({"step": 4})
    assert lines.trouble is None
    lines.close()
    assert [row["step"] for row in read_json_lines(path)] == [1, 2, 3, 4]


def test_only_so_many_rows_wait(tmp_path: Path, room):
    lines = JsonLines(tmp_path / "m.jsonl", most_held=2)
    room(0)
    lines.append({"step": 1})
    lines.append({"step": 2})
    with pytest.raises(UserError, match=r"m\.jsonl \(File too large\), 3 rows"):
        lines.append({"step": 3})


def test_rows_that_still_wait_at_the_end_are_not_lost_silently(tmp_path: Path, room):
    table = StepTable(tmp_path / "steps.csv", most_held=10)
    room(0)
    table.append({"step": 1})
    with pytest.raises(UserError, match=r"steps\.csv \(File too large\): 2 rows"):
        table.close()
    room(None)
    table.close()
    assert (tmp_path / "steps.csv").read_text() == ""


def test_a_table_waits_with_its_header(tmp_path: Path, room):
    table = StepTable(tmp_path / "steps.csv", flush_every=1, most_held=10)
    room(2)
    table.append({"step": 1, "loss": 0.5})
    assert (tmp_path / "steps.csv").read_text() == "" and table.trouble is not None
    room(None)
    table.flush()
    assert (tmp_path / "steps.csv").read_text() == "step,loss\n1,0.5\n" and table.trouble is None


def test_a_disk_that_is_found_full_when_it_is_flushed(tmp_path: Path, monkeypatch):
    lines = JsonLines(tmp_path / "m.jsonl", most_held=2)
    lines.append({"step": 1})

    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patched:
        patched.setattr("vidtrain.files.atomic.os.fsync", full)
        lines.flush()
    assert lines.trouble == "Disk quota exceeded"
    lines.flush()
    assert lines.trouble is None


def test_step_table_puts_step_first_and_writes_in_batches(tmp_path: Path):
    path = tmp_path / "steps.csv"
    table = StepTable(path, flush_every=2)
    table.append({"loss": 0.5, "step": 1})
    assert path.read_text() == "step,loss\n"
    table.append({"loss": None, "step": 2})
    assert path.read_text() == "step,loss\n1,0.5\n2,\n"
    table.append({"step": 3, "loss": 1e-05})
    assert path.read_text() == "step,loss\n1,0.5\n2,\n"
    table.close()
    assert path.read_text() == "step,loss\n1,0.5\n2,\n3,1e-05\n"


def test_step_table_flush_hands_over_every_row(tmp_path: Path):
    table = StepTable(tmp_path / "steps.csv")
    table.flush()
    table.append({"step": 1})
    table.flush()
    assert (tmp_path / "steps.csv").read_text() == "step\n1\n"


def test_step_table_writes_its_header_once(tmp_path: Path):
    path = tmp_path / "steps.csv"
    for step in (1, 2):
        table = StepTable(path)
        table.append({"step": step, "file": 'a, "b"'})
        table.close()
    assert path.read_text() == 'step,file\n1,"a, ""b"""\n2,"a, ""b"""\n'


@pytest.mark.parametrize(
    "found, kept",
    [
        ("step,loss\n1,0.5\n2,0.4\n3,0.3\n", "step,loss\n1,0.5\n2,0.4\n"),
        ("step,loss\n1,0.5\n2,0.4\n3,0", "step,loss\n1,0.5\n2,0.4\n"),
        ("step,loss\n1,0.5\n2", "step,loss\n1,0.5\n"),
        ("step,loss\n9,0.5\n", "step,loss\n"),
        ("step,lo", ""),
        ("", ""),
    ],
)
def test_step_table_rewinds(tmp_path: Path, found: str, kept: str):
    path = tmp_path / "steps.csv"
    path.write_text(found)
    table = StepTable(path)
    table.rewind(2)
    assert path.read_text() == kept
    table.append({"step": 3, "loss": 0.25})
    table.close()
    assert path.read_text() == (kept or "step,loss\n") + "3,0.25\n"


def test_step_table_of_other_code_is_refused(tmp_path: Path):
    path = tmp_path / "steps.csv"
    path.write_text("step,loss\n1,0.5\n")
    with pytest.raises(UserError, match=r"steps\.csv has .*'loss'\], .* \['step', 'lr'\]"):
        StepTable(path).append({"step": 2, "lr": 0.1})


def test_step_table_refuses_rows_of_other_keys(tmp_path: Path):
    table = StepTable(tmp_path / "steps.csv")
    with pytest.raises(ValueError, match='needs a "step"'):
        table.append({"loss": 0.5})
    table.append({"step": 1})
    with pytest.raises(ValueError, match=r"but a row has \['step', 'loss'\]"):
        table.append({"step": 2, "loss": 0.5})
