"""The audit page: all sections, nothing from outside unescaped, and nothing that must be fetched."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from vidtrain.reports.pages import MOST_CLASSES, MOST_ROWS, audit_page, most_unlike, templates

EVIL = "<img src=x onerror=alert(1)>&\"'</script>$title {{ title }}"


def file(name, **more):
    shown = {"path": name, "split": "train", "class": "a", "shape": "96x64, 25/s, 2.0 s", "thumbnail": ""}
    return {**shown, **more}


def bound(name, value, limit, kept):
    shown = {"shown": str(value), "shown_bound": str(limit)}
    return {"name": name, "meaning": name, "value": value, "bound": limit, "kept": kept, **shown}


def summary(text="a", **changes):
    copies = {
        "kind": "near", "distance": 2.5, "splits": ["train", "val"], "across_splits": True, "classes_differ": True,
        "files": [file("one.mp4", thumbnail="one.jpg"), file(f"{text}/two.mp4")],
    }  # fmt: skip
    giveaway = {"name": text, "value": "25.00/s", "of_class": 1.0, "of_value": 0.5, "lift": 2.0}
    shortcut = {
        "attribute": "frame rate", "values": 2, "accuracy": 0.75, "fitted": 0.8, "baseline": 0.5, "gain": 0.25,
        "called_out": True, "giveaways": [giveaway],
    }  # fmt: skip
    row = {
        "name": text,
        "counts": {"train": 3, "val": 0},
        "unreadable": 1,
        "median_seconds": None,
        "rates": text,
        "sizes": "96x64",
    }
    return {
        "root": f"/data/{text}",
        "files": 4,
        "seconds": 7200.0,
        "bytes": 2_500_000_000,
        "splits": {"train": 3, "val": 1},
        "bounds": [bound("max_a", 1, 0, False), bound("max_b", 1, None, True), bound("max_c", 0, 0, True)],
        "unreadable": [file(text, cause=text)],
        "damaged": 1,
        "issues": [file(text, kind="damaged", words=text)],
        "classes": [row],
        "absent_classes": [text],
        "distributions": [
            {"attribute": "duration", "ordered": True, "labels": ["0 s", "1 s"], "counts": {text: [1, 3]}},
            {"attribute": "frame rate", "ordered": False, "labels": [text], "counts": {text: [4]}},
        ],
        "shortcuts": [shortcut],
        "copies": [copies],
        "groups_known": True,
        "groups_across_splits": {text: {"train": 2}},
        "samples": {text: [file(text)]},
        **changes,
    }  # fmt: skip


class Reader(HTMLParser):
    """Every tag with its attributes, and all text but that of styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._last = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._last = tag

    def handle_data(self, data):
        if self._last != "style":
            self.text += data


def test_what_comes_from_outside_is_text_only(tmp_path):
    plain, evil = (Reader(audit_page(summary(text), text, tmp_path)) for text in ("a", EVIL))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert {key for _, attributes in evil.tags for key in attributes} == {
        key for _, attributes in plain.tags for key in attributes
    }
    assert evil.text.count(EVIL) >= 10


def test_names_in_no_encoding_do_not_stop_it(tmp_path):
    name = b"caf\xe9.mp4".decode(errors="surrogateescape")
    assert r"caf\xe9.mp4" in audit_page(summary(name), "x", tmp_path)


def test_the_page_says_what_was_found(tmp_path):
    (tmp_path / "one.jpg").write_bytes(b"\xff\xd8\xff jpeg bytes")
    page = audit_page(summary(), "Audit of mine", tmp_path)
    text = " ".join(Reader(page).text.split())
    assert "Audit of mine" in text
    assert "fails Bounds exceeded: 1." in text
    assert "4files" in text and "2.0 hof video" in text and "2.50 GBon disk" in text
    assert "frame rate predicts the class of 75.0% of the videos, against 50.0% for the most common class" in text
    assert "near train and val different classes 2 files, up to 2.5 of 64 bits apart" in text
    assert "1 sets of alike files, 1 of them in more than one split." in text
    assert base64.b64encode(b"\xff\xd8\xff jpeg bytes").decode() in page
    assert text.count("no picture") == 2
    assert "1 absent Without a readable video in some split: a" in text


def test_it_needs_nothing_else(tmp_path):
    page = audit_page(summary(), "x", tmp_path)
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "<script" not in page and "@import" not in page and "http" not in page


def test_nothing_found(tmp_path):
    nothing = summary(
        bounds=[bound("max_c", 0, 0, True)], unreadable=[], issues=[], absent_classes=[], distributions=[],
        shortcuts=[], copies=[], groups_known=False, groups_across_splits={}, samples={"a": []},
    )  # fmt: skip
    text = " ".join(Reader(audit_page(nothing, "x", tmp_path)).text.split())
    for words in (
        "passes No bound is exceeded.",
        "Every file can be read from end to end",
        "Not measured",
        "No two files are alike.",
        "Not known: the dataset has no groups.",
    ):
        assert words in text


def test_long_lists_end_with_how_much_is_left_out(tmp_path):
    many = summary(copies=summary()["copies"] * (60 + 7), unreadable=summary()["unreadable"] * (MOST_ROWS + 5))
    text = Reader(audit_page(many, "x", tmp_path)).text
    assert "… and 7 more sets, in summary.json." in text
    assert "… and 5 more rows, in summary.json." in text


def chart(labels, counts, ordered):
    source = '{% from "distribution.svg.jinja" import chart %}{{ chart(labels, counts, ordered) }}'
    return templates().from_string(source).render(labels=labels, counts=counts, ordered=ordered).strip()


@pytest.mark.parametrize("ordered", [True, False])
def test_charts_are_sound_svg(ordered):
    drawn = chart(["<1>", "2"], {"<a>": [1, 3], "empty": [0, 0], "b" * 99: [4, 0]}, ordered)
    picture = ElementTree.fromstring(drawn)
    words = [each.text for each in picture.iter("text")]
    assert ("75%" in words) is not ordered
    assert "<1>" in words
    assert [each.text for each in picture.iter("title")][0] == "<a>"
    assert "empty" not in words
    bars = [float(each.get("height")) for each in picture.iter("rect")]
    if ordered:
        assert bars[1] == pytest.approx(3 * bars[0], abs=0.2)  # 3 videos to 1


def test_of_many_classes_the_odd_ones_are_drawn():
    rows = {f"class {n}": [10, 10] for n in range(100)}
    rows["class 41"] = [20, 0]
    rows["class 7"] = [1, 9]
    chosen, left_out = most_unlike(rows)
    assert len(chosen) == MOST_CLASSES and left_out == 70
    assert {"class 41", "class 7"} <= set(chosen)
    assert chosen == [name for name in rows if name in chosen]
    assert "72 more classes" in chart(["a", "b"], {**rows, "c": [1, 1], "d": [2, 2]}, False)


@pytest.mark.parametrize("name", ["../secret.jpg", "{}/secret.jpg", "key.jpg"])
def test_no_other_file_gets_into_the_page(name, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8\xff the user's own")
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails/key.jpg").write_bytes(b"PRIVATE KEY")
    found = summary()
    found["copies"][0]["files"][0]["thumbnail"] = name.format(tmp_path)
    page = audit_page(found, "a", tmp_path / "thumbnails")
    assert base64.b64encode(b"\xff\xd8\xff the user's own").decode() not in page
    assert base64.b64encode(b"PRIVATE KEY").decode() not in page
