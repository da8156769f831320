"""Class names in one spelling: what looks alike is one class, or is refused."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from vidtrain.errors import UserError
from vidtrain.files.escaping import is_utf8

NO_UTF8 = (
    "holds bytes that are no UTF-8: save the file that names it as UTF-8, such as with iconv -f latin1 -t utf-8 OLD > "
    "NEW, or, of a folder, rename it"
)
# White space, and what takes no room and means nothing at an end: zero-width space, word joiner, byte-order mark,
# marks of direction. Joiners stay, as Persian, Indic scripts and emoji spell with them.
_EDGE = r"[\s\u200b\u200e\u200f\u2060\ufeff]+"
_EDGES = re.compile(rf"^{_EDGE}|{_EDGE}$")


def one_spelling(name: str) -> str:
    """`name` in Unicode's composed form (NFC), as macOS's file names are not, without white space at its ends."""
    if name.isascii():
        return name.strip()
    # composing first and last: what is cut off may leave a mark at the end
    return unicodedata.normalize("NFC", _EDGES.sub("", unicodedata.normalize("NFC", name)))


def spelled(names: Sequence[str]) -> list[str]:
    """Each of `names` in one spelling; fast where they are many and few differ."""
    if "".join(names).isascii():
        return [name.strip() for name in names]
    known: dict[str, str] = {}
    return [known[name] if name in known else known.setdefault(name, one_spelling(name)) for name in names]


def spelled_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names that were stored, in one spelling; as they are where two would become one."""
    stored = tuple(names)
    spellings = tuple(map(one_spelling, stored))
    return spellings if len(set(spellings)) == len(set(stored)) else stored


def spelled_list(names: Sequence[str], where: object) -> tuple[str, ...]:
    """A list of classes in one spelling. Raises `UserError` where two of them become one, or one is no UTF-8."""
    check_text(names, where)
    first_with: dict[str, str] = {}
    for name in names:
        other = first_with.setdefault(one_spelling(name), name)
        if other != name:
            raise UserError(f"{where} names one class in two spellings: {other!a} and {name!a}")
    return tuple(map(one_spelling, names))


def check_text(names: Iterable[str], where: object) -> None:
    """Raises `UserError` for a name of bytes that are no UTF-8, which could not be written anywhere."""
    for name in names:
        if not is_utf8(name):
            raise UserError(f"{where}: the class {name!r} {NO_UTF8}")


def appearance(name: str) -> str:
    """What is seen of a name: without invisible characters, and with every white space as one space."""
    seen = (char for char in unicodedata.normalize("NFC", name) if char.isspace() or char.isprintable())
    return " ".join(unicodedata.normalize("NFC", "".join(seen)).split())


def check_appearance(names: Iterable[str], where: str) -> None:
    """Raises `UserError` where two of `names`, which are different, look alike."""
    first_with: dict[str, str] = {}
    for name in names:
        other = first_with.setdefault(appearance(name), name)
        if other != name:
            raise UserError(
                f"{where}: the classes {other!a} and {name!a} look alike; spell them alike if they are one"
            )
