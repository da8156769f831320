"""Names from outside as text, and secrets that are masked."""

import ast
import csv
import html
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rich.console
from hostile_names import HOSTILE, acts

from vidtrain.data.decoding.video import DecodeError
from vidtrain.errors import UserError
from vidtrain.files import escaping
from vidtrain.files.atomic import JsonLines, write_json_atomic, write_text_atomic
from vidtrain.files.escaping import (
    MaskedStream,
    csv_text,
    guarded_cell,
    hide,
    is_masked,
    markdown,
    markdown_code,
    masked,
    masked_values,
    plain_cell,
    read_csv,
    read_records,
    shown,
    shown_lines,
)
from vidtrain.reports.pages import templates
from vidtrain.tracking.console import Console
from vidtrain.tracking.logger_process import escape_texts

PACKAGE = Path(__file__).resolve().parents[2] / "vidtrain"


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


def test_hostile_names_come_back_from_csv(tmp_path):
    rows = [["path", "label"], *([name, name[::-1]] for name in HOSTILE)]
    for end in ("\n", "\r\n"):
        text = csv_text(rows, end)
        (tmp_path / "rows.csv").write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        assert read_csv(tmp_path / "rows.csv", "again") == rows
        for row in csv.reader(io.StringIO(text, newline="")):
            assert not any(re.match("[=+@\t\r\n＝＋－＠]|-(?![0-9.]+$)", cell) for cell in row)
    (tmp_path / "rows.csv").write_text("path,p\n'=x,-1\n")
    (record,) = read_records(tmp_path / "rows.csv", "again")
    assert record == {"path": "=x", "p": "-1"}


def test_damaged_csv_is_one_error_that_says_what_to_do(tmp_path):
    file = tmp_path / "rows.csv"
    with pytest.raises(UserError, match="rows.csv cannot be read .*; copy it again"):
        read_csv(file, "copy it again")
    file.write_text("path,p\na,1\nb\n")
    with pytest.raises(UserError, match="rows.csv, row 3 has 1 .* 2; copy it again"):
        read_records(file, "copy it again")


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


# --- outputs: every one is compared with the same names ----------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_consoles_show_names_as_text(name):
    out = io.StringIO()
    console = Console(rich.console.Console(file=out, width=2000))
    console.info(f"{shown(name)}: a")
    console.warn(str(DecodeError(name, name)))
    console.table(name, (name, "b"), [(name, 1)])
    with console.phase(name, 1):
        console.advance(1, {"x": name})
    text = out.getvalue()
    assert not acts(text) and text.count(shown(name).strip()) >= 6


@pytest.mark.parametrize("name", HOSTILE)
def test_bars_show_names_as_text(name):
    out = io.StringIO()
    terminal = rich.console.Console(file=out, width=2000, force_terminal=True, color_system=None)
    with Console(terminal).phase(name, 1):
        pass
    assert shown(name).strip() in out.getvalue()
    assert "\x1b]" not in out.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_pages_show_names_as_text(name):
    escaped = templates().from_string("{{ name }}").render(name=name)
    assert html.unescape(escaped) == shown(name)
    assert not set(escaped) & set("<>\"'") and not acts(escaped)


def test_trackers_are_told_text_that_they_can_store():
    told = escape_texts({name: [name, 1, {"x": name}] for name in HOSTILE})
    json.dumps(told, ensure_ascii=False).encode()
    assert told["[/x]"] == ["[/x]", 1, {"x": "[/x]"}]
    assert told[r"caf\xe9"] == [r"caf\xe9", 1, {"x": r"caf\xe9"}]


SCRIPT = """
import os, sys
from pathlib import Path
from vidtrain.tracking.console import make_console
from vidtrain.tracking.console import take_every_character, use_utf8
use_utf8()
take_every_character()
path = Path(sys.argv[1])
for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
    make_console(True).info(f"{line} {os.path.exists(path.parent / line)}")
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_no_locale_lacks_a_character(tmp_path, environment):
    names = ["é日本.mp4".encode(), b"caf\xe9.mp4"]
    (tmp_path / "listing.txt").write_bytes(b"\n".join(names))
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    (tmp_path / "program.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "listing.txt")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.decode().splitlines()
    assert first in ("é日本.mp4 True", r"\xe9\u65e5\u672c.mp4 True") and second == r"caf\xe9.mp4 True"


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


@pytest.mark.slow
def test_every_text_file_is_opened_as_utf8():
    lines = [f"{file}:{line}" for file in PACKAGE.rglob("*.py") for line in without_encoding(file)]
    assert not lines


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch):
    monkeypatch.setattr(escaping, "_replacements", {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:pw@host/x", "http://u:***@host/x"),
        ("see http://u:pw@host, or not", "see http://u:***@host, or not"),
        ("redis://:pw@host", "redis://:***@host"),
        ("a=http://u:p@h,b=postgresql+psycopg2://x:123@h/db", "a=http://u:***@h,b=postgresql+psycopg2://x:***@h/db"),
        ("http://u:p@w/x#?@host:80/y", "http://u:***@host:80/y"),  # what addresses should not hold
        ('{"a":"http://u:p@h","b":"x@y"}', '{"a":"http://u:***@h","b":"x@y"}'),
        ("https://host/x?token=abc&y=1", "https://host/x?token=***&y=1"),
        ("http://u:a${oc.env:PW}@h", "http://u:***@h"),
        ("http://u:***@h", "http://u:***@h"),
    ],
)  # fmt: skip
def test_passwords_in_addresses_are_masked(text, shown):
    assert masked(text) == shown
    assert is_masked(masked(text))


@pytest.mark.parametrize(
    "text",
    [
        "http://host:80/a@b",
        "http://[::1]:8080/a@b",
        "ssh://git@host/x",
        "sqlite:///outputs/mlflow.db",
        "sqlite:///a:b@c",
        "https://host/x?page=2",
        "http://u:${oc.env:PW}@host",  # a reference says nothing
        "http://${oc.env:U}:${oc.env:PW}@host",
        "https://host/?sig=${oc.env:SIG}",
        "12:30 u:pw@host",
    ],
)
def test_all_else_stays(text):
    assert masked(text) == text
    assert not is_masked(text)


def test_long_texts_take_no_longer_than_they_are():
    began = time.perf_counter()
    for text in ("http://a:" + "x" * 2_000_000, "http://a:x" * 200_000, "x" * 2_000_000 + "://"):
        assert masked(text) == text
    assert time.perf_counter() - began < 5


def test_nested_values():
    found = masked_values({"a": ["http://u:p@h", 1, None], "b": {"c": "http://u:p@h"}, "d": 0.5})
    assert found == {"a": ["http://u:***@h", 1, None], "b": {"c": "http://u:***@h"}, "d": 0.5}


def test_values_of_secret_variables_are_masked_as_they_are_and_as_they_are_quoted():
    hide("TRACKING_PASSWORD", 'p"ä ss/1')
    for text in ('p"ä ss/1', json.dumps('p"ä ss/1')[1:-1], "p%22%C3%A4%20ss%2F1"):
        assert masked(f"<{text}>") == "<${oc.env:TRACKING_PASSWORD}>"
    hide("DATA", "/datasets")  # not a secret
    hide("TOKEN", "short")  # would be found in many a text
    assert masked("/datasets is short") == "/datasets is short"


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("PW", True), ("DB_PW2", True), ("PASS", True), ("MLFLOW_TRACKING_PASSWORD", True), ("WANDB_API_KEY", True),
        ("GITHUB_TOKEN", True), ("AWS_SECRET_ACCESS_KEY", True), ("PWD", False), ("HOME", False), ("PATH", False),
        ("KEYBOARD", False), ("USER", False), ("LR", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name, is_secret):
    hide(name, "123456789")
    assert (masked("123456789") != "123456789") is is_secret


def test_what_is_written_and_printed_is_masked(tmp_path):
    write_text_atomic(tmp_path / "a", "http://u:pw@h\n")
    write_json_atomic(tmp_path / "b", {"uri": "http://u:pw@h"})
    ledger = JsonLines(tmp_path / "c")
    ledger.append({"cause": "no route to http://u:pw@h/"})
    ledger.close()
    assert (tmp_path / "a").read_text() == "http://u:***@h\n"
    assert json.loads((tmp_path / "b").read_text()) == {"uri": "http://u:***@h"}
    assert json.loads((tmp_path / "c").read_text()) == {"cause": "no route to http://u:***@h/"}
    stream = io.StringIO()
    print("http://u:pw@h", file=MaskedStream(stream))
    assert stream.getvalue() == "http://u:***@h\n"
