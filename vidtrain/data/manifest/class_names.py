"""Class names in one spelling: what looks alike is one class, or is refused with its code points."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from vidtrain.errors import UserError
from vidtrain.files.escaping import is_utf8

NO_UTF8 = (
    "holds bytes that are no UTF-8, so what names it may be in Latin-1 or another encoding; save it as UTF-8, such as "
    "with iconv -f latin1 -t utf-8 OLD > NEW, or, of a folder, rename it"
)
NAMED = 4  # pairs in a message, and code points of a name
# White space, and what takes no room and means nothing at an end: zero-width space, word joiner, byte-order mark,
# marks of direction. Joiners stay, as Persian, Indic scripts and emoji spell with them.
_EDGE = r"[\s\u200b\u200e\u200f\u2060\ufeff]+"
_EDGES = re.compile(rf"^{_EDGE}|{_EDGE}$")
# Invisible, whatever category Unicode gives them: joiner of graphemes, fillers of Hangul, blank of Braille
_BLANKS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")
_VARIANTS = ((0xFE00, 0xFE0F), (0x180B, 0x180F), (0xE0100, 0xE01EF))  # which of its shapes a character takes


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
    for pair in _alike(names, one_spelling):
        raise UserError(f"{where} names one class in two spellings: {tell_apart(*pair)}")
    return tuple(map(one_spelling, names))


def _alike(names: Iterable[str], key: Callable[[str], str]) -> list[tuple[str, str]]:
    """Pairs of different names that have the same `key`."""
    first_with: dict[str, str] = {}
    firsts = ((first_with.setdefault(key(name), name), name) for name in names)
    return [(first, name) for first, name in firsts if first != name]


def check_text(names: Iterable[str], where: object) -> None:
    """Raises `UserError` for a name of bytes that are no UTF-8, which could not be written anywhere."""
    for name in names:
        if not is_utf8(name):
            raise UserError(f"{where}: the class {name!r} {NO_UTF8}")


def appearance(name: str) -> str:
    """What is seen of a name: without what is invisible, and with every white space as one space."""
    seen = "".join(
        char for char in unicodedata.normalize("NFC", name) if char.isspace() or not _invisible(char)
    )
    return " ".join(unicodedata.normalize("NFC", seen).split())


def check_appearance(names: Iterable[str], where: str) -> None:
    """Raises `UserError` with the code points where two of `names`, which are different, look alike."""
    names = tuple(names)
    if "".join(names).isascii() and not any("  " in name or not name.isprintable() for name in names):
        return
    pairs = [tell_apart(*pair) for pair in _alike(names, appearance)]
    if pairs:
        more = f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
        raise UserError(
            f"{where}: classes look alike but are spelled with other code points: {'; '.join(pairs[:NAMED])}{more}. "
            "Spell them alike where they are one class"
        )


class LookAlikes:
    """Finds among `known` names those that look like another one."""

    def __init__(self, known: Iterable[str]):
        self._by_appearance = {appearance(name): name for name in known}

    def describe(self, name: str) -> str | None:
        """How `name` differs from the known one that looks like it; None where none does."""
        other = self._by_appearance.get(appearance(name), name)
        return None if other == name else tell_apart(other, name)


def describe_alike(some: Iterable[str], others: Iterable[str]) -> str:
    """Which of `some` look like one of `others`, with what tells them apart, to follow a message; "" for none."""
    known = LookAlikes(others)
    pairs = [pair for pair in map(known.describe, some) if pair is not None]
    if not pairs:
        return ""
    return f"; they look alike but are spelled with other code points: {'; '.join(pairs[:NAMED])}"


def tell_apart(one: str, other: str) -> str:
    """Two names that look alike, and the code points that only one of them holds."""
    return f"{_marked(one, other)} and {_marked(other, one)}"


def _marked(name: str, other: str) -> str:
    own = Counter(name) - Counter(other)
    shown = "".join(f"\\u{ord(char):04x}" if char in own and _invisible(char) else char for char in name)
    points = [f"U+{ord(char):04X} {unicodedata.name(char, 'without a name')}" for char in own]
    more = f" and {len(points) - NAMED} more" if len(points) > NAMED else ""
    return f"'{shown}'" + (f" (with {', '.join(points[:NAMED])}{more})" if points else "")


def _invisible(char: str) -> bool:
    if char == " ":
        return False
    return (
        unicodedata.category(char) in ("Cf", "Cc", "Zs", "Zl", "Zp")
        or char in _BLANKS
        or any(first <= ord(char) <= last for first, last in _VARIANTS)
    )
