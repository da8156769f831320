"""What is masked: passwords in addresses, and values of variables that are called secret."""

import io
import json
import time

import pytest

from vidtrain.files import masking as secrecy
from vidtrain.files.atomic import write_json_atomic, write_text_atomic
from vidtrain.files.masking import MaskedStream, hide, is_masked, masked, masked_values
from vidtrain.tracking.ledgers import JsonLines


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch):
    monkeypatch.setattr(secrecy, "_hidden", {})


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
