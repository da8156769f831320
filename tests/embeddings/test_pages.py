"""The two pages as a browser takes them apart, and the listing that the page of suspects writes."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from made_embeddings import made
from page_reader import PageReader

from vidtrain.data.manifest.files import csv_text
from vidtrain.data.sources.listings import ListingFormat, read_pool
from vidtrain.embeddings.pages import correcting_page, embeddings_page, flat, suspect_rows
from vidtrain.embeddings.ranking import Likeness, find_suspects
from vidtrain.errors import UserError
from vidtrain.reports.pages import TEMPLATES
from vidtrain.runs.examples import moving_picture

ODD = 'a "quoted", <b>name</b>;'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("embeddings")
    (out / "pictures").mkdir()
    for row in range(60):
        frames = np.full((4, 24, 32, 3), 4 * row, np.uint8)
        (out / "pictures" / f"{row:06d}.webp").write_bytes(moving_picture(frames))
    (out / "pictures" / "000007.webp").write_bytes(b"<script>alert(1)</script>")  # no picture
    return out


def odd():
    embeddings = made()
    paths = [f"/videos/{ODD if row == 3 else '=1+2'} {row}.mp4" for row in range(60)]
    groups = np.where(np.arange(60) == 5, paths, embeddings.groups)
    return replace(embeddings, paths=np.array(paths), groups=groups, classes=np.array([ODD, "-b", "c"]))


def page_of(embeddings, folder, shown=60):
    suspects, _ = find_suspects(embeddings, 5, "self_confidence")
    return suspects, correcting_page(embeddings, suspects, np.arange(60), folder / "pictures", shown, 5)


@pytest.mark.parametrize("how", ["pca", "tsne", "none"])
def test_the_page_has_a_map_neighbors_and_pairs(folder, how):
    embeddings = replace(made(), splits=np.array(["train", "test"] * 30))
    page = PageReader(embeddings_page(Likeness.of(embeddings, None, 3, 0.5), how, folder, None))
    points = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert len(points) == (0 if how == "none" else 60)
    assert page.sections == ["map"] * (how != "none") + ["alike", "duplicates"]
    assert len({point["style"] for point in points}) == (0 if how == "none" else 3)
    assert all(source.startswith("data:image/webp;base64,") for source in page.images)
    assert base64.b64encode(b"<script>").decode()[:8] not in "".join(page.images)


def test_a_map_keeps_the_two_largest_directions():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 2)) * [5, 2]
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    flattened = flat(np.concatenate([plane, np.zeros((50, 4))], axis=1) @ turned, "pca")
    assert flattened.min() == 0 and flattened.max() == 1
    for axis in range(2):
        assert abs(np.corrcoef(flattened[:, axis], plane[:, axis])[0, 1]) > 0.97
    assert flat(np.ones((3, 1)), "pca").tolist() == [[0, 0]] * 3


def test_names_are_shown_and_never_markup(folder):
    embeddings = odd()
    suspects, html = page_of(embeddings, folder)
    page = PageReader(html)
    assert ODD in page.text and "b" not in [tag for tag, attributes in page.tags if attributes.get("name")]
    assert len([1 for tag, attributes in page.tags if attributes.get("class") == "film card"]) == 60
    assert html.count("</script>") == 2  # the cells, and the code
    assert suspect_rows(embeddings, suspects)[1][0] == embeddings.paths[suspects.rows[0]]


def cells_of(html):
    return json.loads(re.search(r'id="cells">(.*?)</script>', html, re.DOTALL)[1])


def in_node(html, decisions, call="listingCsv"):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    code = (TEMPLATES / "label_errors.js").read_text()
    arguments = f"{json.dumps(cells_of(html))}, {json.dumps(decisions)}"
    done = subprocess.run(
        ["node", "-e", f"{code}\nprocess.stdout.write({call}({arguments}))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_listing_of_the_page_is_the_one_of_split(folder, tmp_path):
    embeddings = replace(odd(), starts=np.where(np.arange(60) % 2, np.nan, 1.25))
    _, html = page_of(embeddings, folder)
    (tmp_path / "ours.csv").write_text(csv_text(embeddings.manifest(), "", None))
    (tmp_path / "page.csv").write_text(in_node(html, {}))
    ours, page = (read_pool(tmp_path / name, ListingFormat()) for name in ("ours.csv", "page.csv"))
    assert list(ours) == list(page) and ours.classes == page.classes


def test_what_was_decided_is_in_the_listing(folder, tmp_path):
    embeddings = odd()
    _, html = page_of(embeddings, folder)
    decisions = {"0": 0, "3": 2, "4": "drop"}  # kept, corrected, dropped
    (tmp_path / "page.csv").write_text(in_node(html, decisions))
    pool = read_pool(tmp_path / "page.csv", ListingFormat())
    corrected = {record.path: record for record in pool}
    assert len(corrected) == 59 and embeddings.paths[4] not in corrected
    assert pool.classes[corrected[embeddings.paths[3]].label] == "c"
    assert pool.classes[corrected[embeddings.paths[0]].label] == ODD
    assert in_node(html, decisions, "summary") == "3 looked at: 1 kept, 1 corrected, 1 dropped"


@pytest.mark.parametrize("name", ["line\nbreak.mp4", "\udce9.mp4"])
def test_names_that_no_listing_holds_are_refused(folder, name):
    embeddings = made()
    paths = embeddings.paths.astype(object)
    paths[3] = f"/videos/{name}"
    with pytest.raises(UserError, match="rename it"):
        page_of(replace(embeddings, paths=paths.astype(np.str_)), folder)
