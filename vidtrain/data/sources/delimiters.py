"""What stands between the fields of a listing: as said, or as its first lines show."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vidtrain.data.sources.class_folders import SUFFIXES
from vidtrain.data.sources.labels import is_integer
from vidtrain.data.sources.tables import DELIMITERS, LAST_SPACE, open_text, split_line, width_of
from vidtrain.errors import UserError

PATH_WORDS = ("path", "video", "video_path", "file", "filename", "file_name")
LABEL_WORDS = ("label", "labels", "class", "class_name", "class_id", "label_id", "category", "target")
# A semicolon often stands between the labels of one field, so it is taken only where none of these fits
FIRST_TRIED = (",", "\t", "::")
SAMPLE = 200  # lines that are looked at
ENDINGS = tuple(SUFFIXES)
# The end of a video's path, and more after it
VIDEO_INSIDE = re.compile(rf"(?:{'|'.join(map(re.escape, SUFFIXES))})[^\w.]+\S", re.IGNORECASE)


@dataclass(frozen=True)
class Cut:
    """How lines become fields: `width` of them; where cut at their last spaces, what shows that a line is whole."""

    delimiter: str
    width: int
    whole: Callable[[Sequence[str]], bool] | None = None


def names_video(fields: Sequence[str]) -> bool:
    """Whether the first field ends like a video's path."""
    return fields[0].lower().endswith(ENDINGS)


def ends_in_integer(fields: Sequence[str]) -> bool:
    return is_integer(fields[-1])


def named_delimiter(text: str) -> str:
    """The delimiter that `text` names (comma, tab, space, semicolon, last_space) or is; `UserError` for others."""
    by_name = {name: delimiter for delimiter, name in DELIMITERS.items()} | {
        "\\t": "\t",
        LAST_SPACE: LAST_SPACE,
    }
    if text in by_name:
        return by_name[text]
    if text in DELIMITERS:
        return text
    choices = ", ".join((*DELIMITERS.values(), LAST_SPACE))
    raise UserError(f"dataset.source.delimiter={text!r}: choose one of {choices}")


def find_cut(
    path: Path,
    delimiter: str | None,
    label_separator: str | None,
    columns: Sequence[str | int | None],
    header: bool | None,
) -> Cut:
    """The cut that `delimiter` names or, where it is None, that gives most of the first lines the same fields.

    It is never at `label_separator`. `columns` are those asked for, first the path's. Spaces may stand in the path
    where it is the first field and lines are whole when they are cut at the last ones. A few lines that do not fit are
    left for reading to complain about. Raises `UserError` where none fits, or several.
    """
    with open_text(path) as file:
        sample = list(islice((line for line in file if line.strip()), SAMPLE))
    if not sample:
        raise UserError(f"{path} holds no lines")
    if delimiter not in (None, " ", LAST_SPACE):
        return Cut(delimiter, _usual_width(sample, delimiter))
    by_header = [] if header is False else _cutting_header(sample[0], label_separator, columns)
    if delimiter is None and len(by_header) == 1:
        return Cut(by_header[0], width_of(sample[0], by_header[0]))
    headed = _is_headed(sample[0], columns, header)
    width = (
        len(sample[0].split())
        if headed
        else 1 + max([1, *(each for each in columns if isinstance(each, int))])
    )
    if delimiter == LAST_SPACE:
        return Cut(LAST_SPACE, width)
    first = (None, 0, sample[0].split()[0]) if headed else (None, 0)
    spaced = None
    if columns[0] in first and label_separator != " ":
        spaced = _cut_at_last_spaces(sample[headed:], width)
    if delimiter == " ":
        return spaced or Cut(delimiter, _usual_width(sample, delimiter))
    fitting = _fitting(sample, label_separator)
    telling = {
        each: width for each, width in fitting.items() if _names_videos(sample, each, width, columns[0])
    }
    others = (telling if spaced is not None and spaced.whole is names_video else fitting).keys() - {" "}
    if spaced is not None and not others:
        return spaced
    if not telling and 2 * sum(VIDEO_INSIDE.search(line) is not None for line in sample) >= len(sample):
        fitting = {}  # each of them cuts within paths or leaves them together with labels
    fitting = telling or fitting
    if (
        spaced is not None
        and not telling
        and not any(_end_in_integers(sample[headed:], *each) for each in fitting.items())
    ):
        fitting = {**fitting, LAST_SPACE: width}  # where that has integers for labels
        fitting.pop(" ", None)
    if len(fitting) != 1:
        raise UserError(f"{path}{_none_or_several(fitting, sample[0])}")
    return Cut(*next(iter(fitting.items())))


def _cutting_header(line: str, label_separator: str | None, columns: Sequence[str | int | None]) -> list[str]:
    """The delimiters but spaces that cut the first line into the names of columns: those asked for by name, else the
    usual ones of paths and labels."""
    asked = {column for column in columns if isinstance(column, str)}

    def cuts(delimiter: str) -> bool:
        names = [field.strip() for field in split_line(line, delimiter)]
        usual = names[0].lower() in PATH_WORDS and not {name.lower() for name in names[1:]}.isdisjoint(
            LABEL_WORDS
        )
        return asked <= set(names) if asked else usual

    tried = (each for each in DELIMITERS if each not in (" ", label_separator) and width_of(line, each) > 1)
    return [each for each in tried if cuts(each)]


def _is_headed(line: str, columns: Sequence[str | int | None], header: bool | None) -> bool:
    """Whether a line of words with spaces between them names the columns."""
    if header is not None:
        return header
    words = [word.lower() for word in line.split()]
    named = words[0] in PATH_WORDS and not set(words[1:]).isdisjoint(LABEL_WORDS)
    return named or any(isinstance(column, str) for column in columns)


def _cut_at_last_spaces(lines: Sequence[str], width: int) -> Cut | None:
    """At the last spaces, if that makes at least half of `lines` whole: the path a video's, else the label a number."""
    found = [
        fields for fields in (split_line(line, LAST_SPACE, width) for line in lines) if len(fields) == width
    ]
    for whole in (names_video, ends_in_integer):
        kept = [fields for fields in found if whole(fields)]
        if not kept or 2 * len(kept) < len(lines):
            continue
        if whole is names_video or not _has_other_columns(lines, kept, width):
            return Cut(LAST_SPACE, width, whole)
    return None


def _has_other_columns(lines: Sequence[str], cut: Sequence[Sequence[str]], width: int) -> bool:
    """Whether what would be paths with spaces seem to be columns, such as a folder and the number of its images."""
    widths = {width_of(line, " ") for line in lines}
    return (len(widths) == 1 and widths != {width}) or all(
        is_integer(fields[0].split()[-1]) for fields in cut
    )


def _fitting(sample: Sequence[str], label_separator: str | None) -> dict[str, int]:
    """The delimiters that may be meant, and how many fields each gives most lines."""
    likely, certain = {}, {}
    for delimiter in (each for each in DELIMITERS if each != label_separator):
        widths = Counter(width for width in (width_of(line, delimiter) for line in sample) if width > 1)
        for width, lines in widths.most_common(1):
            if 2 * lines >= len(sample):
                likely[delimiter] = width
            if lines == len(sample):
                certain[delimiter] = width
    if any(delimiter in likely for delimiter in FIRST_TRIED):
        likely.pop(";", None)
        certain.pop(";", None)
    if certain.keys() == {" "}:
        return likely  # as many spaces in every line say little, where most lines hold another delimiter
    return certain or likely


def _names_videos(sample: Sequence[str], delimiter: str, width: int, column: str | int | None) -> bool:
    """Whether at least half of the lines hold a field that ends like a video's path; of spaces, in the path's place."""

    def names(line: str) -> bool:
        if width_of(line, delimiter) != width:
            return False
        fields = [field.strip().lower() for field in split_line(line, delimiter)]
        if delimiter == " " and not isinstance(column, str):
            fields = fields[column or 0 :][:1]
        return any(field.endswith(ENDINGS) for field in fields)

    return 2 * sum(map(names, sample)) >= len(sample)


def _end_in_integers(lines: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether the last field of at least half of the lines is a class number."""
    whole = [
        width_of(line, delimiter) == width and ends_in_integer(split_line(line, delimiter)) for line in lines
    ]
    return 2 * sum(whole) >= len(lines)


def _none_or_several(fitting: dict[str, int], line: str) -> str:
    shown = line.rstrip()
    if not fitting:
        return (
            " must hold two or more fields a line, such as a path and a label, and none of "
            f"{', '.join(DELIMITERS.values())} cuts its lines into fields, as many in each. Quote fields that hold "
            f"the delimiter, or say dataset.source.delimiter={LAST_SPACE} where paths hold spaces. Line 1 is {shown!r}"
        )
    names = [DELIMITERS[each] if each in DELIMITERS else each for each in fitting]
    say = " or ".join(f"dataset.source.delimiter={name}" for name in names)
    return f": its delimiter may be {' or '.join(names)}; say {say}. Line 1 is {shown!r}"


def _usual_width(sample: Sequence[str], delimiter: str) -> int:
    """How many fields most of the lines have."""
    return Counter(width_of(line, delimiter) for line in sample).most_common(1)[0][0]
