import ast
import csv
import io
import re
from pathlib import Path

import pytest
from hostile_names import HOSTILE, acts

from vidtrain.names import (
    csv_text,
    guarded_cell,
    markdown,
    markdown_code,
    plain_cell,
    read_csv,
    read_records,
    shown,
    shown_lines,
)

PACKAGE = Path(__file__).resolve().parents[1] / "vidtrain"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clip.mp4", "clip.mp4"),
        ("é 日本語 🎬", "é 日本語 🎬"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\tb\nc\rd", r"a\tb\nc\rd"),
        ("\x9b", r"\x9b"),
        ("\u202e", r"\u202e"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),  # joiners that writing needs
        (Path("a/b"), "a/b"),
    ],
)
def test_a_name_is_shown_on_one_line_and_acts_on_nothing(name, expected):
    assert shown(name) == expected
    assert shown(shown(name)) == shown(name)


def test_a_message_keeps_its_lines():
    assert shown_lines("2 faults:\n  a\x1b\n  b\r") == "2 faults:\n  a\\x1b\n  b\\r"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_name_acts(name):
    assert not acts(shown(name)) and "\n" not in shown(name)
    shown(name).encode()


# --- CSV --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("-2+3", "'-2+3"),
        ("@x", "'@x"),
        ("\t=1", '"\'\t=1"'),
        ("\rx", '"\'\rx"'),
        ("'=1", "''=1"),
        ("'quoted'", "'quoted'"),
        ("-0.5", "-0.5"),
        ("+1e-05", "+1e-05"),
        ("-inf", "-inf"),
        (-0.5, "-0.5"),
        (-3, "-3"),
        (True, "True"),
        (None, ""),
        ("a;=1", '"a;=1"'),
        ('say "so"', '"say ""so"""'),
        ("plain name", "plain name"),
    ],
)
def test_no_cell_is_a_formula_and_numbers_are_numbers(cell, written):
    assert csv_text([[cell, 1]]) == f"{written},1\n"


def test_hostile_names_come_back_from_csv():
    rows = [["path", "label"], *([name, name[::-1]] for name in HOSTILE)]
    for end in ("\n", "\r\n"):
        text = csv_text(rows, end)
        assert read_csv(io.StringIO(text, newline="")) == rows
        for row in csv.reader(io.StringIO(text, newline="")):
            assert not any(re.match("[=+@\t\r\n＝＋－＠]|-(?![0-9.]+$)", cell) for cell in row)
    (record,) = read_records(io.StringIO("path,p\n'=x,-1\n", newline=""))
    assert record == {"path": "=x", "p": "-1"}


def test_csv_is_what_the_csv_module_writes_for_plain_cells():
    rows = [["a", 1, 0.25, None, "b,c", "d e", 'f"g', "h\ni"], [""], ["", ""]]
    theirs = io.StringIO(newline="")
    csv.writer(theirs, lineterminator="\n").writerows(rows)
    assert csv_text(rows) == theirs.getvalue()


def test_guards_are_taken_off_again():
    assert all(plain_cell(guarded_cell(name)) == name for name in HOSTILE)


# --- Markdown ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Apply Eye-Makeup_2", "Apply Eye-Makeup_2"),
        ("timm:vit, r2+1d v1.0/x", "timm:vit, r2+1d v1.0/x"),
        ("日本語", "日本語"),
        ("_it_", "`_it_`"),
        ("<b>", "`<b>`"),
        ("www.x.org", "`www.x.org`"),
        ("http://x", "`http://x`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("a\nb\x1b", r"`a\nb\x1b`"),
        ("", "` `"),
    ],
)
def test_a_name_in_markdown_is_text_or_code(name, expected):
    assert markdown(name) == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_ends_the_code_that_it_stands_in(name):
    text = markdown_code(name)
    fence = re.match("`+", text)[0]
    assert text.endswith(fence) and fence not in re.findall("`+", text[len(fence) : -len(fence)])
    assert "\n" not in text and not acts(text)


# --- files ------------------------------------------------------------------------------------------------


def without_encoding(file):
    """Lines on which a text file is opened in whatever encoding the machine has."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        name = getattr(called, "attr", getattr(called, "id", ""))
        owner = getattr(getattr(called, "value", None), "id", "")
        given = {keyword.arg for keyword in node.keywords}
        words = [each.value for each in (*node.args, *(k.value for k in node.keywords if k.arg == "mode"))
                 if isinstance(each, ast.Constant) and isinstance(each.value, str)]  # fmt: skip
        modes = [each for each in words if each and set(each) <= set("rwaxbt+")]
        opens = name in ("read_text", "write_text", "fdopen") or (name == "open" and modes) or (
            isinstance(called, ast.Name) and name == "open"
        )  # fmt: skip
        if name == "run" and owner == "subprocess" and "text" in given:
            yield node.lineno
        if (
            opens
            and owner not in ("os", "av", "archive")
            and not any("b" in mode for mode in modes)
            and "encoding" not in given
        ):
            yield node.lineno


def test_every_text_file_is_opened_as_utf8():
    lines = [f"{file}:{line}" for file in PACKAGE.rglob("*.py") for line in without_encoding(file)]
    assert not lines
