"""Text that leaves this package: names from outside are escaped, secrets are masked.

A name (a path, a class, a cause) may hold anything that a file system or a listing lets through: escape sequences, line
breaks, characters that turn the direction of writing, bytes that are no UTF-8 (Python keeps those as surrogates),
formulas, markup. Secrets are passwords in addresses, and values of variables whose names say so: every
console, ledger and record of this package goes through `masked`.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

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


def shown_some(names: Sequence[object], most: int) -> str:
    """The first `most` of `names` as in `shown`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def first_lines(lines: Sequence[str], most: int) -> list[str]:
    """The first `most` of `lines`, and as one more line how many more there are."""
    more = len(lines) - most
    return [*lines[:most], f"and {more} more"] if more > 0 else list(lines)


def shown_lines(text: object) -> str:
    """As `shown`, for a message of ours that holds names: its line breaks stay."""
    return _UNSEEN_IN_LINES.sub(_spell, str(text))


def _spell(match: re.Match[str]) -> str:
    character = match[0]
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


def csv_text(rows: Iterable[Sequence[object]], end: str = "\n") -> str:
    """All of `csv_lines`."""
    return "".join(csv_lines(rows, end))


def csv_lines(rows: Iterable[Sequence[object]], end: str = "\n") -> Iterator[str]:
    """Rows as CSV that no spreadsheet computes with: text that begins with = + - @, a tab or a line break, and so would
    be taken for a formula, gets a ' in front; `read_csv` takes that off again. Numbers stay numbers, in text too.

    Text that holds a semicolon or a tab is quoted as well, as some spreadsheets cut there.
    """
    return (",".join([_field(cell, len(row)) for cell in row]) + end for row in rows)


def _field(cell: object, width: int) -> str:
    text = guarded_cell(cell) if isinstance(cell, str) else "" if cell is None else str(cell)
    if _NEEDS_QUOTES.search(text) or (not text and width == 1):  # readers skip a line without anything
        return '"' + text.replace('"', '""') + '"'
    return text


def guarded_cell(text: str) -> str:
    """The text of a cell with a ' in front where a spreadsheet would compute with it; the inverse is `plain_cell`."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(text: str) -> str:
    """The text that `guarded_cell` got."""
    return text[1:] if text[:1] == "'" and _GUARDED.match(text) else text


def read_csv(file: TextIO) -> list[list[str]]:
    """The rows of a file that `csv_lines` wrote; the first is its header. Raises `csv.Error`."""
    return [[plain_cell(cell) for cell in row] for row in csv.reader(file, strict=True)]


def read_records(file: TextIO) -> list[dict[str, str]]:
    """The rows of a file that `csv_lines` wrote, by column. Raises `csv.Error`, and `ValueError` for a row of another
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
    code = shown(text) or " "
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * (longest + 1)
    # a blank at each end, as Markdown takes one off
    gap = " " if code.strip() and (code[0] in "` " or code[-1] in "` ") else ""
    return f"{fence}{gap}{code}{gap}{fence}"


# --- secrets ----------------------------------------------------------------------------------------------

MASK = "***"
# What stands for a value that is read when it is needed, such as ${oc.env:NAME}: it says nothing, and is kept
REFERENCE = r"\$\{(?:[^{}]|\$?\{[^{}]*\})*\}"
# scheme://user:password@host, up to the last @ of the word, as a password may hold what addresses should not. A number
# before the path is a port
ADDRESS = re.compile(
    rf"(://(?:{REFERENCE}|[^\s/:@'\"<>\[${{}}]){{0,200}}:)"
    r"(?!\d+(?:[/?#\s'\",;]|$))((?:(?!://)[^\s'\"<>]){1,500})(@)"
)
QUERY = re.compile(
    r"([?&](?:password|passwd|pwd|token|access_token|auth_token|api_key|apikey|secret|sig|signature|"
    rf"x-amz-signature|x-amz-security-token)=)((?:{REFERENCE}|\$(?!\{{)|[^\s&#'\"<>$])+)()",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(
    r"(?:^|_)(?:pw|pass|pat|auth|creds?|credentials?)(?:_|\d*$)|passw|passphrase|secret|token|key\d*$|apikey",
    re.IGNORECASE,
)
SHORTEST_SECRET = 6  # characters: shorter values stand in many texts

_replacements: dict[str, str] = {}  # a secret value, as it may stand in a text -> what stands there instead


def masked(text: str) -> str:
    """`text` without the passwords of addresses (user:***@host), and without the values that `hide` knows."""
    if "://" in text:
        text = QUERY.sub(_mask, ADDRESS.sub(_mask, text))
    for value, replacement in _replacements.items():
        text = text.replace(value, replacement)
    return text


def _mask(match: re.Match[str]) -> str:
    head, secret, end = match.groups()
    return head + (secret if re.fullmatch(f"(?:{REFERENCE})+", secret) else MASK) + end


def masked_values(value: Any) -> Any:
    """The same of every text in nested mappings and lists, keys aside."""
    return map_texts(value, masked)


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested mappings and lists with everything else in them changed, keys aside."""
    if isinstance(value, Mapping):
        return {key: map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_leaves(item, change) for item in value]
    return change(value)


def map_texts(value: Any, change: Callable[[str], Any]) -> Any:
    return map_leaves(value, lambda leaf: change(leaf) if isinstance(leaf, str) else leaf)


def is_masked(text: str) -> bool:
    """Whether a password was taken out of `text` before it was stored."""
    return "://" in text and (f":{MASK}@" in text or f"={MASK}" in text)


def hide(name: str, value: str) -> None:
    """From now on `value` is masked in this process, if the `name` of its variable says that it is secret."""
    if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
        spellings = (
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            quote(value, safe=""),
        )
        for spelling in (value, *spellings):
            _replacements.setdefault(spelling, f"${{oc.env:{name}}}")


def hidden() -> dict[str, str]:
    """What `masked` looks for, for `hide_these` in another process."""
    return dict(_replacements)


def hide_these(replacements: Mapping[str, str]) -> None:
    _replacements.update(replacements)


def mask_streams() -> None:
    """From now on, nothing secret goes through this process's standard output and standard error: not what libraries
    print, and not the traceback of an error either."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), MaskedStream):
            setattr(sys, name, MaskedStream(getattr(sys, name)))


class MaskedStream:
    """A text stream that nothing secret goes through, as far as it is written in one piece."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def markdown_cell(text: object) -> str:
    """Markdown as the cell of a table: a bar stays in it after an odd number of backslashes."""
    return re.sub(r"(\\*)\|", lambda bar: 2 * bar[1] + r"\|", str(text))
