"""The page of an audit: one HTML file that needs nothing else, made from the audit's summary.

Paths and class names come from outside, so every text is escaped; only what this module writes itself is `Markup`.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from vidtrain.reports.audit_charts import chart
from vidtrain.reports.markup import Markup, badge, code, escape, more, paragraph, table

TEMPLATE = Path(__file__).with_suffix(".html")
# How much of each is shown; all of it is in summary.json and files.csv
JPEG = b"\xff\xd8\xff"  # how such a file begins
MOST_SETS = 60
MOST_IN_SET = 8
IN_NARROW_SET = 2  # of which two have room side by side
MOST_SAMPLED = 60

Plain = Mapping[str, Any]


def render(summary: Plain, title: str, thumbnails: Path) -> str:
    """The page. `summary` is that of vidtrain.data.audit.summary; pictures are read from the folder `thumbnails`."""
    pictures = _Pictures(thumbnails)
    sections = [
        ("summary", "Summary", _bounds(summary)),
        ("broken", "Broken files", _broken(summary)),
        ("classes", "Classes", _classes(summary)),
        ("shortcuts", "Shortcuts", _shortcuts(summary)),
        ("distributions", "Durations, rates and sizes", _distributions(summary)),
        ("duplicates", "Duplicates", _duplicates(summary, pictures)),
        ("groups", "Groups across splits", _groups(summary)),
        ("samples", "Samples", _samples(summary, pictures)),
    ]
    links = Markup("".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections))
    body = [
        f"<h1>{escape(title)}</h1>",
        _figures(summary),
        f"<nav>{links}</nav>",
        *(f'<h2 id="{key}">{name}</h2>\n{text}' for key, name, text in sections),
    ]
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(body))


class _Pictures:
    """Thumbnails as figures, each with its file's words below."""

    def __init__(self, folder: Path):
        self._folder = folder

    def film(self, files: Iterable[Plain], with_place: bool) -> Markup:
        return Markup(f'<div class="films">{"".join(self._figure(each, with_place) for each in files)}</div>')

    def _figure(self, file: Plain, with_place: bool) -> str:
        place = f"<b>{escape(file['split'])}</b> {escape(file['class'])}<br>" if with_place else ""
        name = escape(file["path"].rsplit("/", 1)[-1])
        words = f'{place}<span title="{escape(file["path"])}">{name}</span><br>'
        return (
            f"<figure>{self._image(file['thumbnail'])}<figcaption>{words}"
            f"{escape(file['shape'])}</figcaption></figure>"
        )

    def _image(self, name: str) -> str:
        path = self._folder / name
        # the name is of a ledger that may be from elsewhere, and no other file is to get into the page
        data = path.read_bytes() if name and path.name == name and path.is_file() else b""
        if not data.startswith(JPEG):
            return '<div class="none">no picture</div>'
        data = base64.b64encode(data).decode()
        return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{data}">'


# --- sections ---------------------------------------------------------------------------------------------


def _figures(summary: Plain) -> str:
    splits = ", ".join(f"{split} {count}" for split, count in summary["splits"].items())
    figures = [
        (f"{summary['files']:,}", "files"),
        (f"{len(summary['classes'])}", "classes"),
        (f"{summary['seconds'] / 3600:.1f} h", "of video"),
        (f"{summary['bytes'] / 1e9:.2f} GB", "on disk"),
        (f"{len(summary['unreadable'])}", "unreadable"),
        (f"{summary['damaged']}", "truncated or damaged"),
    ]
    boxes = "".join(f"<div><b>{escape(value)}</b>{escape(words)}</div>" for value, words in figures)
    where = f"<p>{code(summary['root'])}</p><p class='soft'>{escape(splits)}</p>"
    return f'{where}<div class="figures">{boxes}</div>'


def _bounds(summary: Plain) -> str:
    exceeded = sum(not each["kept"] for each in summary["bounds"])
    verdict = badge("bad", "fails") if exceeded else badge("good", "passes")
    rows = []
    for each in summary["bounds"]:
        mark = badge("plain", "no bound") if each["bound"] is None else badge("good", "kept")
        mark = mark if each["kept"] else badge("bad", "exceeded")
        value, bound = Markup(escape(each["shown"])), each["shown_bound"]
        rows.append((each["meaning"], value, bound, mark, code(each["name"])))
    count = f"Bounds exceeded: {exceeded}." if exceeded else "No bound is exceeded."
    return f"<p>{verdict} {count}</p>" + table(("finding", "value", "at most", "", "setting"), rows)


def _broken(summary: Plain) -> str:
    unreadable, issues = summary["unreadable"], summary["issues"]
    if not unreadable and not issues:
        return paragraph("Every file can be read from end to end, and nothing is odd about any.")
    parts = []
    if unreadable:
        rows = [(each["split"], each["class"], code(each["path"]), each["cause"]) for each in unreadable]
        parts.append(
            f"<h3>Unreadable: {len(unreadable)}</h3>" + table(("split", "class", "file", "cause"), rows)
        )
    for kind, count in Counter(each["kind"] for each in issues).most_common():
        rows = [
            (each["split"], each["class"], code(each["path"]), each["words"])
            for each in issues
            if each["kind"] == kind
        ]
        parts.append(
            f"<h3>{escape(kind.capitalize())}: {count}</h3>" + table(("split", "class", "file", ""), rows)
        )
    return "".join(parts)


def _classes(summary: Plain) -> str:
    splits = list(summary["splits"])
    columns = ("class", *splits, "unreadable", "median s", "frame rates", "frame sizes")
    rows = [
        (
            each["name"],
            *(each["counts"][split] for split in splits),
            each["unreadable"],
            each["median_seconds"],
            each["rates"],
            each["sizes"],
        )
        for each in summary["classes"]
    ]
    absent = summary["absent_classes"]
    warning = ""
    if absent:
        words = "Without a readable video in some split: " + ", ".join(absent[:20])
        warning = f"<p>{badge('bad', f'{len(absent)} absent')} {escape(words)}</p>"
    return warning + paragraph("Readable videos in each split.", soft=True) + table(columns, rows, most=1000)


def _shortcuts(summary: Plain) -> str:
    found = summary["shortcuts"]
    if not found:
        return paragraph("Not looked for: it takes two classes or more, and one class a video.")
    called = [each for each in found if each["called_out"]]
    parts = [
        paragraph(
            "How well one attribute of the files alone tells the class: accuracy of guessing the class that is most "
            "common with its value, learned from half of the videos and tried on the other. A model can learn the "
            "same instead of what is to be seen.",
            soft=True,
        )
    ]
    for each in called:
        tells = [f"{give['name']} ({give['value']})" for give in each["giveaways"]]
        listed = ", ".join(dict.fromkeys(tells[:12]))
        words = f"{each['attribute']} tells the class in {each['accuracy']:.1%} of the videos, against "
        words += f"{each['baseline']:.1%} for the most common class"
        words += f". It gives away: {listed}" if listed else ""
        parts.append(f"<p>{badge('bad', 'shortcut')} {escape(words)}</p>")
    if not called:
        parts.append(f"<p>{badge('good', 'none')} No attribute tells more than chance would.</p>")
    rows = [
        (each["attribute"], each["values"], each["accuracy"], each["baseline"], each["gain"], each["fitted"])
        for each in found
    ]
    columns = ("attribute", "values", "accuracy", "most common class", "gain", "fitted to all")
    parts.append(table(columns, rows))
    giveaways = [
        (
            each["attribute"],
            give["name"],
            give["value"],
            f"{give['of_class']:.0%}",
            f"{give['of_value']:.0%}",
            give["lift"],
        )
        for each in called
        for give in each["giveaways"]
    ]
    if giveaways:
        columns = ("attribute", "class", "value", "of the class", "of the value", "times as likely")
        parts.append(table(columns, giveaways, most=60))
    return "".join(parts)


def _distributions(summary: Plain) -> str:
    return "".join(
        f"<h3>{escape(each['attribute'].capitalize())} by class</h3>"
        + chart(each["labels"], each["counts"], each["ordered"])
        for each in summary["distributions"]
    )


def _duplicates(summary: Plain, pictures: _Pictures) -> str:
    sets = summary["copies"]
    if not sets:
        return paragraph("No two files are alike.")
    parts = []
    for each in sets[:MOST_SETS]:
        files, across = each["files"], each["across_splits"]
        bits = f", up to {each['distance']:.1f} of 64 bits apart" if each["kind"] == "near" else ""
        marks = [badge("plain", each["kind"])]
        marks.append(badge("bad" if across else "plain", " and ".join(each["splits"])))
        if each["classes_differ"]:
            marks.append(badge("bad", "different classes"))
        look = f"set{' across' if across else ''}{' wide' if len(files) > IN_NARROW_SET else ''}"
        parts.append(
            f'<div class="{look}">{" ".join(marks)} {len(files)} {"file" if len(files) == 1 else "files"}{bits}'
            f"{pictures.film(files[:MOST_IN_SET], with_place=True)}{more(len(files) - MOST_IN_SET, 'files')}</div>"
        )
    in_several = sum(each["across_splits"] for each in sets)
    words = f"{len(sets)} sets of alike files, {in_several} of them in more than one split."
    return f'{paragraph(words)}<div class="sets">{"".join(parts)}</div>{more(len(sets) - MOST_SETS, "sets")}'


def _groups(summary: Plain) -> str:
    found = summary["groups_across_splits"]
    if not summary["groups_known"]:
        return paragraph(
            "Not known: every video is a group of its own. group_pattern reads groups from the paths."
        )
    if not found:
        return paragraph("No group stands in more than one split.")
    splits = list(summary["splits"])
    rows = [
        (group, *(counts[split] if split in counts else 0 for split in splits))
        for group, counts in found.items()
    ]
    return table(("group", *splits), rows)


def _samples(summary: Plain, pictures: _Pictures) -> str:
    classes = list(summary["samples"].items())
    parts = [
        f"<h3>{escape(name)}</h3>{pictures.film(files, with_place=False)}"
        for name, files in classes[:MOST_SAMPLED]
        if files
    ]
    return "".join(parts) + more(len(classes) - MOST_SAMPLED, "classes")
