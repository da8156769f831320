"""Names that paths, classes and causes can have, and that every output must survive and show as mere text."""

import os

ESCAPES = "\x1b]0;owned\x07\x1b[31mred"  # sets a terminal's title and color
HOSTILE = (
    ESCAPES,
    "\x9b31mred",  # the same in one C1 character
    "back\x08\x08space\x7f",
    "return\rerror: all is lost",
    "line\nerror: all is lost",
    "tab\tbed",
    "turned\u202egnp.mp4",
    "line\u2028separator\u200b",
    "[/x]",
    "[bold red]x[",
    ":smile: [link=http://x]y",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt; ' \" $body ${title}",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "＝1+1",
    "a;=1+1",
    "'=1+1",
    "''-1",
    "a,b",
    'say "so"',
    "-0.5",
    "-",
    "![x](http://x/y.png) [z](javascript:alert(1))",
    "`code` ``more`` `",
    "# a | b \\| c",
    "*bold* _it_ ~~gone~~ www.x.org",
    "$\\frac{a}$ and $b",
    "{0} {x} %s %(y)s",
    "é ü 日本語 🎬",
    "e\u0301",
    " spaces around ",
    os.fsdecode(b"caf\xe9"),  # a byte that is no UTF-8
    "x" * 120,
)
FILE_NAMES = tuple(name.replace("/", "\u2215") for name in HOSTILE)  # as one component of a path
ACTING = tuple(map(chr, (*range(0x0A), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x202E, 0x2028, 0x200B)))


def acts(text: str) -> list[str]:
    """The characters of `text` that a terminal obeys, or that hide; line breaks aside."""
    return [character for character in text if character in ACTING or "\ud800" <= character <= "\udfff"]
