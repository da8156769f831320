"""Escaping and masking of text before it is printed or written.

A name (of a file or a class, or a cause of an error) may hold anything that a file system or a listing allows: escape
sequences, line breaks, characters that reverse the direction of text, bytes that are not UTF-8 (Python keeps these as
surrogates), formulas, markup. Secrets are passwords in addresses, and values of environment variables with names like
API_KEY. All consoles and files of this package use `masked`.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from vidtrain.errors import UserError

# Control characters (C0, DEL, C1), line separators, invisible characters, those that change the direction of text, and
# surrogates. The joiners 200C and 200D are not in it, as Persian and some emoji need them.
_UNSEEN = (
    "\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSEEN_IN_LINES = re.compile(f"[{_UNSEEN}]")
_UNSEEN_IN_NAMES = re.compile(f"[\n{_UNSEEN}]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def shown(name: object) -> str:
    """A name on one line, with control and invisible characters escaped as in Python (`\\x1b`, `\\u202e`), and bytes
    that are not UTF-8 as `\\xe9`."""
    return _UNSEEN_IN_NAMES.sub(_spell, str(name))


def shown_some(names: Sequence[object], most: int) -> str:
    """The first `most` of `names`, each by `shown`, and the number of others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def first_lines(lines: Sequence[str], most: int) -> list[str]:
    """The first `most` of `lines`, and a line with the number of others."""
    more = len(lines) - most
    return [*lines[:most], f"and {more} more"] if more > 0 else list(lines)


def shown_lines(text: object) -> str:
    """Like `shown`, but line breaks stay: for a whole message."""
    return _UNSEEN_IN_LINES.sub(_spell, str(text))


def _spell(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # the surrogate for the byte code - 0xDC00
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def is_utf8(text: str) -> bool:
    """Whether a name is valid UTF-8; Python keeps other bytes as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def legend_of(picture: Path) -> Path:
    """The file beside a picture that lists the names for the numbers drawn in it, if names could not be drawn."""
    return picture.with_name(f"{picture.stem}_names.txt")


# --- CSV --------------------------------------------------------------------------------------------------

# Spreadsheets read a cell that begins with one of these (also in full width) as a formula, or split it there
_ACTS = "=+\\-@\t\r\n＝＋－＠"
_FORMULA = re.compile(f"'*[{_ACTS}]")
_GUARDED = re.compile(f"'+[{_ACTS}]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)
_NEEDS_QUOTES = re.compile('[",;\t\r\n]')


def csv_text(rows: Iterable[Sequence[object]], end: str = "\n") -> str:
    """The lines of `csv_lines` as one text."""
    return "".join(csv_lines(rows, end))


def csv_lines(rows: Iterable[Sequence[object]], end: str = "\n") -> Iterator[str]:
    """Rows as lines of CSV without formulas: text that begins with = + - @, a tab or a line break, which a spreadsheet
    would compute, gets a ' in front. `read_csv` removes it again. Numbers are unchanged, even as text.

    Text with a semicolon or a tab is quoted, too, as some spreadsheets split it there.
    """
    return (",".join([_field(cell, len(row)) for cell in row]) + end for row in rows)


def _field(cell: object, width: int) -> str:
    text = guarded_cell(cell) if isinstance(cell, str) else "" if cell is None else str(cell)
    if _NEEDS_QUOTES.search(text) or (not text and width == 1):  # an empty line would be skipped by readers
        return '"' + text.replace('"', '""') + '"'
    return text


def guarded_cell(text: str) -> str:
    """The text of a cell, with a ' in front if a spreadsheet would compute it; the inverse is `plain_cell`."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(text: str) -> str:
    """The inverse of `guarded_cell`."""
    return text[1:] if text[:1] == "'" and _GUARDED.match(text) else text


def read_csv(path: Path, advice: str) -> list[list[str]]:
    """The rows of a file that `csv_lines` wrote; the first one is the header.

    Raises `UserError` if the file is absent or damaged; `advice` tells the user what to do then.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [[plain_cell(cell) for cell in row] for row in csv.reader(file, strict=True)]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); {advice}") from error


def read_records(path: Path, advice: str) -> list[dict[str, str]]:
    """The rows of a file that `csv_lines` wrote, as column -> text. Raises `UserError` as `read_csv` does, and for a
    row of another length than the header."""
    header, *rows = read_csv(path, advice) or [[]]
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(header):
            raise UserError(f"{path}, row {number} has {len(row)} fields and not {len(header)}; {advice}")
    return [dict(zip(header, row, strict=True)) for row in rows if row]


# --- Markdown ---------------------------------------------------------------------------------------------

# Letters and digits with single punctuation marks between, which are no markup; www. would become a link
_ORDINARY = re.compile(r"(?!.*www\.)[^\W_]+((, |: |[ _.,:/+-])[^\W_]+)*", re.IGNORECASE)


def markdown(name: object) -> str:
    """A name in Markdown: unchanged if nothing in it could be markup, else as code."""
    text = str(name)
    return text if _ORDINARY.fullmatch(text) else markdown_code(text)


def markdown_code(text: object) -> str:
    """Text as Markdown code on one line; it may hold backticks."""
    code = shown(text) or " "
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * (longest + 1)
    # Markdown strips one space from each end of code, so one is added
    gap = " " if code.strip() and (code[0] in "` " or code[-1] in "` ") else ""
    return f"{fence}{gap}{code}{gap}{fence}"


# --- secrets ----------------------------------------------------------------------------------------------

MASK = "***"
# A reference such as ${oc.env:NAME} is not masked, as it does not reveal its value
REFERENCE = r"\$\{(?:[^{}]|\$?\{[^{}]*\})*\}"
# scheme://user:password@host, up to the last @ of the word, as a password may itself hold @. A number before the path
# is a port, not a password
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
SHORTEST_SECRET = 6  # characters; shorter values would be masked in many unrelated texts

_replacements: dict[str, str] = {}  # secret value, in each of its spellings -> its replacement


def masked(text: str) -> str:
    """`text` without passwords in addresses (user:***@host), and without the values that `hide` was called with."""
    if "://" in text:
        text = QUERY.sub(_mask, ADDRESS.sub(_mask, text))
    for value, replacement in _replacements.items():
        text = text.replace(value, replacement)
    return text


def _mask(match: re.Match[str]) -> str:
    head, secret, end = match.groups()
    return head + (secret if re.fullmatch(f"(?:{REFERENCE})+", secret) else MASK) + end


def masked_values(value: Any) -> Any:
    """Nested mappings and lists with every text in them masked, except keys."""
    return map_texts(value, masked)


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested mappings and lists with `change` applied to every other value in them, except keys."""
    if isinstance(value, Mapping):
        return {key: map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_leaves(item, change) for item in value]
    return change(value)


def map_texts(value: Any, change: Callable[[str], Any]) -> Any:
    return map_leaves(value, lambda leaf: change(leaf) if isinstance(leaf, str) else leaf)


def is_masked(text: str) -> bool:
    """Whether `text` was stored with a masked password."""
    return "://" in text and (f":{MASK}@" in text or f"={MASK}" in text)


def hide(name: str, value: str) -> None:
    """Makes this process mask `value` from now on, if the `name` of its variable looks like that of a secret."""
    if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
        spellings = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe=""))
        for spelling in (value, *spellings):
            _replacements.setdefault(spelling, f"${{oc.env:{name}}}")


def hidden() -> dict[str, str]:
    """All values that `masked` replaces, to be passed to `hide_these` in another process."""
    return dict(_replacements)


def hide_these(replacements: Mapping[str, str]) -> None:
    _replacements.update(replacements)


def mask_streams() -> None:
    """Masks secrets in everything that this process prints from now on, also in the output of libraries and in
    tracebacks."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), MaskedStream):
            setattr(sys, name, MaskedStream(getattr(sys, name)))


class MaskedStream:
    """A text stream that masks secrets, if each is written in one piece."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def markdown_cell(text: object) -> str:
    """Markdown text as the cell of a table: a | is escaped by an odd number of backslashes."""
    return re.sub(r"(\\*)\|", lambda bar: 2 * bar[1] + r"\|", str(text))
