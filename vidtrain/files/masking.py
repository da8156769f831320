"""What is never printed or written: passwords in addresses, and values of variables whose names say that they are
secret. Every console, ledger and record of this package goes through `masked`."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"
LONGEST = 500  # characters of a password
# What stands for a value that is read when it is needed, such as ${oc.env:NAME}: it says nothing, and is kept
REFERENCE = r"\$\{(?:[^{}]|\$?\{[^{}]*\})*\}"
# scheme://user:password@host, up to the last @ of the word, as a password may hold what addresses should not. A number
# before the path is a port
ADDRESS = re.compile(
    rf"(://(?:{REFERENCE}|[^\s/:@'\"<>\[${{}}]){{0,200}}:)"
    rf"(?!\d+(?:[/?#\s'\",;]|$))((?:(?!://)[^\s'\"<>]){{1,{LONGEST}}})(@)"
)
QUERY = re.compile(
    r"([?&](?:password|passwd|pwd|token|access_token|auth_token|api_key|apikey|secret|sig|signature|"
    rf"x-amz-signature|x-amz-security-token)=)((?:{REFERENCE}|\$(?!\{{)|[^\s&#'\"<>$])+)",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(
    r"(?:^|_)(?:pw|pass|pat|auth|creds?|credentials?)(?:_|\d*$)|passw|passphrase|secret|token|key\d*$|apikey",
    re.IGNORECASE,
)
SHORTEST = 6  # characters of a value that is looked for: shorter ones stand in many texts

_hidden: dict[str, str] = {}  # a secret value, as it may stand in a text -> what stands there instead


def masked(text: str) -> str:
    """`text` without the passwords of addresses (user:***@host), and without values that `hide` was told of."""
    if "://" in text:
        text = QUERY.sub(_without, ADDRESS.sub(_without, text))
    for value, instead in _hidden.items():
        if value in text:
            text = text.replace(value, instead)
    return text


def _without(found: re.Match) -> str:
    head, secret, *end = found.groups()
    kept = secret if re.fullmatch(f"(?:{REFERENCE})+", secret) else MASK
    return "".join([head, kept, *end])


def masked_values(value: Any) -> Any:
    """The same of every text in nested mappings and lists, keys aside."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(each) for each in value]
    return value


def is_masked(text: str) -> bool:
    """Whether a password was taken out of `text` before it was stored."""
    return "://" in text and (f":{MASK}@" in text or f"={MASK}" in text)


def hide(name: str, value: str) -> None:
    """From now on `value` is masked in this process, if the `name` of its variable says that it is secret."""
    if not SECRET_NAME.search(name) or len(value) < SHORTEST:
        return
    for form in (
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        quote(value, safe=""),
    ):
        _hidden.setdefault(form, f"${{oc.env:{name}}}")


def hidden() -> dict[str, str]:
    """What `masked` looks for, to be handed to another process."""
    return dict(_hidden)


def hide_these(found: Mapping[str, str]) -> None:
    """What `hidden` gave in another process."""
    _hidden.update(found)


def mask_streams() -> None:
    """From now on, nothing secret goes through this process's standard output and standard error: not what libraries
    print, and not the traceback of an error either."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), MaskedStream):
            setattr(sys, name, MaskedStream(getattr(sys, name)))


class MaskedStream:
    """A text stream that nothing secret goes through, as far as it is written in one piece."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
