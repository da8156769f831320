"""What paths name."""

import pytest

from vidtrain.data.stores.places import (
    Member,
    absolute,
    check_no_secret,
    common_folder,
    is_plain,
    is_url,
    joined,
    member_of,
    name_of,
    relative,
)
from vidtrain.errors import UserError

MEMBER = "s3://bucket/shards/0.tar::000/cat 1.mp4@1536+88231"


@pytest.mark.parametrize(
    "path, plain, url",
    [
        ("/data/a.mp4", True, False),
        ("a:b/c.mp4", True, False),
        ("a//b.mp4", True, False),
        ("/data/x.tar", True, False),
        ("/data/x.tar::a.mp4", True, False),
        ("/data/x.tar::a.mp4@0+10", False, False),
        ("https://host/a.mp4", False, True),
        ("simplecache::s3://bucket/a.mp4", False, True),
        (MEMBER, False, True),
    ],
)
def test_kinds(path, plain, url):
    assert (is_plain(path), is_url(path)) == (plain, url)


def test_members():
    member = member_of(MEMBER)
    assert member == Member("s3://bucket/shards/0.tar", "000/cat 1.mp4", 1536, 88231)
    assert member.path == MEMBER
    assert member_of("/a/x.tar::b.tar::c@d.mp4@1+2") == Member("/a/x.tar::b.tar", "c@d.mp4", 1, 2)


@pytest.mark.parametrize(
    "path, name",
    [
        ("/data/a.mp4", "a.mp4"),
        (MEMBER, "cat 1.mp4"),
        ("https://host/b/%C3%B6%201.mp4?versionId=3", "ö 1.mp4"),
        ("s3://bucket/b/a?b#c.mp4", "a?b#c.mp4"),
    ],
)
def test_names(path, name):
    assert name_of(path) == name


@pytest.mark.parametrize(
    "folder, name, path",
    [
        ("/data", "a.mp4", "/data/a.mp4"),
        ("/data", "https://host/a.mp4", "https://host/a.mp4"),
        ("https://host/v", "ö 1#2.mp4", "https://host/v/%C3%B6%201%232.mp4"),
        ("https://host/v/", "s3://bucket/a.mp4", "s3://bucket/a.mp4"),
        ("https://host/v", "0.tar::a 1.mp4@1+2", "https://host/v/0.tar::a 1.mp4@1+2"),
        ("s3://bucket/v", "ö 1#2.mp4", "s3://bucket/v/ö 1#2.mp4"),
    ],
)
def test_joining(folder, name, path):
    assert joined(folder, name) == path


def test_folders():
    assert relative("s3://b/v/c/a.mp4", "s3://b/v") == "c/a.mp4"
    assert relative("/data/c/a.mp4", "/data") == "c/a.mp4"
    assert relative("s3://b/v/a.mp4", "/data") == "s3://b/v/a.mp4"
    assert common_folder(["s3://b/v/c/a.mp4", "s3://b/v/d/e/a.mp4"]) == "s3://b/v"
    assert common_folder(["s3://b/a.mp4", "s3://c/a.mp4"]) == ""
    assert common_folder(["s3://b/a.mp4", "/data/a.mp4"]) == ""
    assert common_folder(["/data/a.mp4", "/data/c/a.mp4"]) == "/data"
    assert absolute("s3://b/a.mp4") == "s3://b/a.mp4"


@pytest.mark.parametrize(
    "path",
    [
        "https://me:hunter22@host/a.mp4",
        "https://host/a.mp4?X-Amz-Credential=AKIA&X-Amz-Signature=hunter22",
        "https://host/a.mp4?sv=2022&sig=hunter22",
        "s3://me:hunter22@bucket/a.tar::a.mp4@0+10",
        "https://host/a.mp4?token=hunter22",
    ],
)
def test_secrets_are_refused(path):
    with pytest.raises(UserError) as error:
        check_no_secret(path, "dataset.source.train")
    assert "dataset.source.train" in str(error.value) and "hunter22" not in str(error.value)


@pytest.mark.parametrize("path", ["/data/a:b@c?token=1", "https://host/a.mp4?versionId=3", MEMBER, "ssh://me@host/a"])
def test_what_holds_none(path):
    check_no_secret(path)
