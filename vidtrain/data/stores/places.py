"""The paths of videos. A path names a plain file, a URL, or a member of a tar file, which is either of them itself.

    /data/cat.mp4
    s3://bucket/cat.mp4
    s3://bucket/shards/000012.tar::000000123/cat.mp4@1536+88231

The last one is the member 000000123/cat.mp4 of the tar file: 88231 bytes from byte 1536 on. The functions of this
module only process text; they open no file.
"""

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from vidtrain.errors import UserError

# A protocol, or several that fsspec chains: s3://, simplecache::s3://
_URL = re.compile(r"[A-Za-z][\w+.-]*(::[A-Za-z][\w+.-]*)*://")
_MEMBER = re.compile(r"(?P<archive>.+\.tar)::(?P<name>.+)@(?P<begin>\d+)\+(?P<length>\d+)", re.DOTALL)
# Names in signed queries: of a signature, a credential or a password
SIGNED = re.compile(r"sig(nature)?|.*-signature|.*token|.*credential|.*secret|.*key-?id|pass(wor|w)?d?|api-?key", re.I)


class Member(NamedTuple):
    """A file within a tar file: its bytes are `length` from `begin` on of `archive`."""

    archive: str
    name: str
    begin: int
    length: int

    @property
    def path(self) -> str:
        return f"{self.archive}::{self.name}@{self.begin}+{self.length}"


def is_plain(path: str) -> bool:
    """Whether `path` is that of a file which the operating system can open."""
    return not is_url(path) and member_of(path) is None


def is_url(path: str) -> bool:
    """Whether `path` is a URL, or a member of a tar file at a URL."""
    return "://" in path and _URL.match(path) is not None


def is_http(path: str) -> bool:
    return path[:8].lower().startswith(("http://", "https://"))


def member_of(path: str) -> Member | None:
    """The member of a tar file that `path` names; None for other paths."""
    match = _MEMBER.fullmatch(path) if ".tar::" in path else None
    return Member(match["archive"], match["name"], int(match["begin"]), int(match["length"])) if match else None


def name_of(path: str) -> str:
    """The name of the file or member, without folders and without the query of a URL."""
    if member := member_of(path):
        return PurePosixPath(member.name).name
    if is_http(path):
        return unquote(PurePosixPath(urlsplit(path).path).name)
    return os.path.basename(path)


def absolute(path: str) -> str:
    """The absolute path of `path`."""
    member = member_of(path)
    if is_url(path) or member is None:
        return path if is_url(path) else os.path.abspath(path)
    return member._replace(archive=os.path.abspath(member.archive)).path


def joined(folder: str, name: str) -> str:
    """The path of the file `name` in `folder`, which may be a URL."""
    if is_url(name):
        return name
    if not is_url(folder):
        return os.path.join(folder, name)
    member = member_of(name)
    if is_http(folder) and member is None:
        name = quote(os.fsencode(name))
    return f"{folder.rstrip('/')}/{name}"


def relative(path: str, folder: str) -> str:
    """`path` relative to `folder`; unchanged, if one of them is a URL and `path` is not below `folder`."""
    if not is_url(path) and not is_url(folder):
        return os.path.relpath(path, folder)
    head = folder.rstrip("/") + "/"
    return path[len(head) :] if path.startswith(head) else path


def common_folder(paths: Iterable[str]) -> str:
    """The deepest folder that holds all `paths`; empty if there is none, as for files and URLs together."""
    folders = {os.path.dirname(absolute(path)) for path in paths}
    if not any(map(is_url, folders)):
        return os.path.commonpath(folders)
    if not all(map(is_url, folders)):
        return ""
    shared = os.path.commonprefix([folder.split("/") for folder in sorted(folders)])
    return "/".join(shared) if len(shared) > 2 else ""


def check_no_secret(path: str, setting: str = "") -> None:
    """Raises `UserError` for a URL with a password or a signed query, as paths are written to indexes, lists and logs.
    The message names the `setting` that has it, but not the secret."""
    if not is_url(path):
        return
    parts = urlsplit(path.rpartition("::")[2] if "::" in path and not member_of(path) else path)
    signed = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if SIGNED.fullmatch(name)]
    if ":" not in parts.netloc.rpartition("@")[0] and not signed:
        return
    what = f"a signed query ({', '.join(signed)})" if signed else "a password"
    raise UserError(
        f"{setting + ': ' if setting else ''}the URL {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} "
        f"has {what}, which would be written to the index, to lists and to logs: remove it, and give credentials "
        "where the store's client looks for them: in ~/.netrc for HTTP, in AWS_PROFILE or ~/.aws for S3"
    )
