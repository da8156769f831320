"""Names from outside, such as paths, class names and causes: how they are shown, and how tables and Markdown hold them.

A name may hold anything that a file system or a listing lets through: escape sequences, line breaks, characters that
turn the direction of writing, bytes that are no UTF-8 (Python keeps those as surrogates), formulas, markup.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

# What a terminal obeys (C0, DEL, C1), what ends a line, what is not seen or turns the direction of writing, and what
# stands for a byte in no encoding. Joiners (200C, 200D) are needed to write Persian and some emoji.
_UNSEEN = (
    "\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSEEN_IN_LINES = re.compile(f"[{_UNSEEN}]")
_UNSEEN_IN_NAMES = re.compile(f"[\n{_UNSEEN}]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def shown(name: object) -> str:
    """A name on one line, without a character that acts or hides: those are spelled as in Python, `\\x1b`, `\\u202e`,
    and a byte that is no UTF-8 as `\\xe9`."""
    return _UNSEEN_IN_NAMES.sub(_spell, str(name))


def shown_lines(text: object) -> str:
    """As `shown`, for a message of ours that holds names: its line breaks stay."""
    return _UNSEEN_IN_LINES.sub(_spell, str(text))


def _spell(found: re.Match[str]) -> str:
    character = found[0]
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # stands for the byte of its last digits
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def is_utf8(text: str) -> bool:
    """Whether a name is text: of bytes that are no UTF-8, Python keeps surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def legend_of(picture: Path) -> Path:
    """The file beside a picture that says what the numbers in it stand for, where names could not be drawn."""
    return picture.with_name(f"{picture.stem}_names.txt")


# --- CSV --------------------------------------------------------------------------------------------------

# Spreadsheets take a cell that begins so for a formula, wide forms too, and cut others at these
_ACTS = "=+\\-@\t\r\n＝＋－＠"
_FORMULA = re.compile(f"'*[{_ACTS}]")
_GUARDED = re.compile(f"'+[{_ACTS}]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)
_NEEDS_QUOTES = re.compile('[",;\t\r\n]')


def csv_text(rows: Iterable[Sequence[Any]], end: str = "\n") -> str:
    """All of `csv_lines`."""
    return "".join(csv_lines(rows, end))


def csv_lines(rows: Iterable[Sequence[Any]], end: str = "\n") -> Iterator[str]:
    """Rows as CSV that no spreadsheet computes with: text that begins with = + - @, a tab or a line break, and so would
    be taken for a formula, gets a ' in front; `read_csv` takes that off again. Numbers stay numbers, in text too.

    Text that holds a semicolon or a tab is quoted as well, as some spreadsheets cut there.
    """
    return (",".join([_field(cell, len(row)) for cell in row]) + end for row in rows)


def _field(cell: Any, width: int) -> str:
    if cell is None:
        text = ""
    elif isinstance(cell, str):
        text = guarded_cell(cell)
    else:
        text = str(cell)
    if _NEEDS_QUOTES.search(text) or (not text and width == 1):  # a line of nothing would be passed over
        return '"' + text.replace('"', '""') + '"'
    return text


def guarded_cell(text: str) -> str:
    """The text of a cell with a ' in front where a spreadsheet would compute with it; the inverse is `plain_cell`."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(text: str) -> str:
    """The text that `guarded_cell` was given."""
    return text[1:] if text[:1] == "'" and _GUARDED.match(text) else text


def read_csv(file: TextIO) -> list[list[str]]:
    """The rows of a file that `csv_lines` made, the first being its header. Raises `csv.Error`."""
    return [[plain_cell(cell) for cell in row] for row in csv.reader(file, strict=True)]


def read_records(file: TextIO) -> list[dict[str, str]]:
    """The rows of a file that `csv_lines` made, by column. Raises `csv.Error`, and `ValueError` for a row of another
    length."""
    header, *rows = read_csv(file) or [[]]
    return [dict(zip(header, row, strict=True)) for row in rows if row]


# --- Markdown ---------------------------------------------------------------------------------------------

# Words of letters and digits with single marks between them, which mean nothing there; www. would become a link
_ORDINARY = re.compile(r"(?!.*www\.)[^\W_]+((, |: |[ _.,:/+-])[^\W_]+)*", re.IGNORECASE)


def markdown(name: object) -> str:
    """A name in Markdown: as it is where nothing in it can mean more, else as code, in which nothing does."""
    text = str(name)
    return text if _ORDINARY.fullmatch(text) else markdown_code(text)


def markdown_code(text: object) -> str:
    """Text as Markdown code, on one line, whatever backticks it holds."""
    words = shown(text) or " "
    longest = max((len(run) for run in re.findall("`+", words)), default=0)
    fence = "`" * (longest + 1)
    # a blank at each end, as Markdown takes one off
    gap = " " if words.strip() and (words[0] in "` " or words[-1] in "` ") else ""
    return f"{fence}{gap}{words}{gap}{fence}"
