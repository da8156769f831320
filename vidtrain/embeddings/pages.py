"""Two HTML pages: a set of embeddings with its map and neighbors, and suspect labels, which are corrected there."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vidtrain.data.manifest.files import csv_text as listing_text
from vidtrain.embeddings.ranking import Likeness, Suspects, k_center, unit
from vidtrain.embeddings.store import PICTURES, UNLABELED, Embeddings
from vidtrain.errors import UserError
from vidtrain.files.escaping import guarded_cell, is_utf8
from vidtrain.reports.charts import spread_evenly
from vidtrain.reports.pages import render

MOST_POINTS = 5000  # of a map
MOST_THUMBNAILS, THUMBNAIL = 48, 56  # number on a map, and size in pixels
MOST_QUERIES, MOST_PAIRS, MOST_NEIGHBORS = 12, 40, 6  # on the page; the tables hold all
MOST_NAMED = 24  # classes of the legend
WIDTH, HEIGHT, MARGIN = 1000, 620, 36  # of the map
WEBP = b"RIFF"  # the first bytes of a WebP file
TSNE_POINTS = 4  # with fewer points there is no t-SNE


@dataclass(frozen=True)
class Film:
    """A video on a page: the source of its moving picture, its path below the common folder, and a text."""

    source: str
    path: str
    text: str


def flat(vectors: np.ndarray, how: str) -> np.ndarray:
    """A map float64 [v 2] of vectors [v d], from 0 to 1 in both directions: `pca`, or scikit-learn's `tsne` with its
    defaults and a fixed seed, started from principal components."""
    centered = vectors - vectors.mean(axis=0, dtype=np.float64)
    _, values, directions = np.linalg.svd(centered, full_matrices=False)
    plane = np.zeros((len(vectors), 2))
    components = centered @ directions[:2].T
    plane[:, : components.shape[1]] = components
    if how == "tsne" and len(vectors) >= TSNE_POINTS:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(vectors) - 1) / 3)
        plane = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(centered)
    low, high = plane.min(axis=0), plane.max(axis=0)
    return (plane - low) / np.where(high > low, high - low, 1.0)


def embeddings_page(alike: Likeness, how: str, out: Path, search: str | None) -> str:
    """The page of embeddings in the folder `out`, with a map (see `flat`) unless `how` is none. `search` names the file
    or folder of the other embeddings, which has their pictures."""
    videos = alike.videos
    folders = [out / PICTURES, None if search is None else picture_folder(search)]
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in videos.paths.tolist()])

    def film(row: int, text: str) -> Film:
        path, split, label = alike.about(row)
        folder, place = folders[row >= len(videos)], row - len(videos) * (row >= len(videos))
        below = os.path.relpath(path, common) if path.startswith(f"{common}/") else path
        return Film(moving(folder, place), below, ", ".join(part for part in (text, label or split) if part))

    shown = range(len(videos))
    if alike.others is None:  # show videos that differ most from one another
        shown = k_center(unit(videos.vectors), MOST_QUERIES // 2).tolist()
    searches = [
        (film(row, ""), [film(other, f"{cosine:.3f}") for other, cosine in zip(rows, cosines, strict=True)])
        for row in list(shown)[:MOST_QUERIES]
        for rows, cosines in [(alike.rows[row, :MOST_NEIGHBORS].tolist(), alike.cosines[row, :MOST_NEIGHBORS].tolist())]
    ]
    pairs = [
        (film(one, alike.about(one)[1]), film(other, alike.about(other)[1]), f"{cosine:.4f}")
        for one, other, cosine in alike.duplicates[:MOST_PAIRS]
    ]
    return render(
        "embeddings.html.jinja",
        title=f"{len(videos)} videos by their embeddings",
        encoder=videos.encoder,
        dimension=videos.vectors.shape[1],
        map=None if how == "none" else _map(videos, how, folders[0]),
        searches=searches if alike.rows.shape[1] else [],
        searched=search,
        pairs=pairs,
        num_pairs=len(alike.duplicates),
        common=common,
    )


def _map(videos: Embeddings, how: str, pictures: Path | None) -> dict[str, Any]:
    """The points of the map with colors, and thumbnails of some distant ones."""
    rows = np.array(spread_evenly(len(videos), MOST_POINTS))
    plane = flat(unit(videos.vectors[rows]), how)
    at = np.stack(
        [MARGIN + plane[:, 0] * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - plane[:, 1] * (HEIGHT - 2 * MARGIN)], 1
    )
    first = videos.labels.argmax(axis=1) if videos.multi_label else videos.labels
    classes = [str(name) for name in videos.classes]
    present = sorted({int(label) for label in first[rows]} - {UNLABELED})
    colors = {label: f"hsl({360 * place / len(present):.0f} 62% 48%)" for place, label in enumerate(present)}
    points = [
        (*place, colors.get(int(first[row]), "currentcolor"), f"{videos.paths[row]} {'; '.join(videos.names_of(row))}")
        for row, place in zip(rows.tolist(), at.round(1).tolist(), strict=True)
    ]
    thumbnails = [
        (points[place][0] - THUMBNAIL / 2, points[place][1] - THUMBNAIL / 2, source, points[place][2])
        for place in k_center(at, MOST_THUMBNAILS).tolist()
        if (source := _still(pictures, int(rows[place])))
    ]
    return {
        "how": how,
        "points": points,
        "thumbnails": thumbnails,
        "legend": [(classes[label], colors[label]) for label in present[:MOST_NAMED]],
        "unnamed": max(0, len(present) - MOST_NAMED),
        "size": (WIDTH, HEIGHT, THUMBNAIL),
        "left_out": len(videos) - len(rows),
    }


# --- pictures ---------------------------------------------------------------------------------------------


def picture_folder(named: str) -> Path:
    """The folder of pictures in the folder `named`, or beside the file `named`."""
    return (Path(named) if Path(named).is_dir() else Path(named).parent) / PICTURES


def _picture(folder: Path | None, row: int) -> bytes:
    """The picture of a row; empty if there is none. The folder may not be trusted, so only WebP files are read."""
    path = None if folder is None else folder / f"{row:06d}.webp"
    data = path.read_bytes() if path is not None and path.is_file() else b""
    return data if data.startswith(WEBP) else b""


def moving(folder: Path | None, row: int) -> str:
    """The moving picture of a row as a data URL; empty if there is none."""
    data = _picture(folder, row)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}" if data else ""


def _still(folder: Path | None, row: int) -> str:
    """A thumbnail of the middle frame as a data URL; empty if there is no picture."""
    data = _picture(folder, row)
    if not data:
        return ""
    with Image.open(io.BytesIO(data)) as image:
        image.seek(getattr(image, "n_frames", 1) // 2)
        small = image.convert("RGB")
    small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# --- suspect labels ---------------------------------------------------------------------------------------


def suspect_rows(embeddings: Embeddings, suspects: Suspects) -> list[tuple[object, ...]]:
    """A table with a row for every video, the most suspect first."""
    columns = ("path", "label", "suggested", "label_probability", "suggested_probability", "likely_wrong", "score")
    classes = [str(name) for name in embeddings.classes]
    return [columns] + [
        (
            str(embeddings.paths[row]),
            classes[suspects.labels[place]],
            classes[suspects.others[place]],
            f"{suspects.label_probabilities[place]:.6f}",
            f"{suspects.other_probabilities[place]:.6f}",
            "yes" if suspects.likely[place] else "no",
            f"{suspects.score[place]:.6f}",
        )
        for place, row in enumerate(suspects.rows.tolist())
    ]


def correcting_page(
    embeddings: Embeddings, suspects: Suspects, rows: np.ndarray, pictures: Path, shown: int, folds: int
) -> str:
    """The page of the first `shown` suspects, which writes a listing of all videos with the decisions. `rows` [v] are
    the numbers of the pictures.

    Raises `UserError` for a name that a listing in UTF-8 cannot hold.
    """
    listing_text(embeddings.manifest(), "", None)  # raises for names that no listing can hold
    odd = [path for path in embeddings.paths.tolist() if not is_utf8(path)]
    if odd:
        raise UserError(f"{odd[0]!r} is not UTF-8, which the listing of the page needs: rename it")
    classes = [str(name) for name in embeddings.classes]
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in embeddings.paths.tolist()])
    cards = [
        {
            "row": row,
            "source": moving(pictures, int(rows[row])),
            "path": os.path.relpath(os.path.abspath(embeddings.paths[row]), common),
            "label": int(suspects.labels[place]),
            "other": int(suspects.others[place]),
            "probabilities": (float(suspects.label_probabilities[place]), float(suspects.other_probabilities[place])),
            "likely": bool(suspects.likely[place]),
        }
        for place, row in enumerate(suspects.rows[:shown].tolist())
    ]
    return render(
        "label_errors.html.jinja",
        title=f"Suspect labels of {embeddings.splits[0]}",
        cards=cards,
        classes=classes,
        cells=_listing_cells(embeddings),
        likely=int(suspects.likely.sum()),
        estimate=suspects.estimate,
        accuracy=suspects.accuracy,
        videos=len(embeddings),
        folds=folds,
        common=common,
        encoder=embeddings.encoder,
    )


def _listing_cells(embeddings: Embeddings) -> dict[str, Sequence[Any]]:
    """The columns, class names and rows of the listing that the page writes, in the form of
    `data.manifest.files.csv_text`. A row is the number of its class, then its cells without the label."""
    cut = not (np.isnan(embeddings.starts).all() and np.isnan(embeddings.ends).all())
    times = [["" if np.isnan(time) else repr(float(time)) for time in pair] for pair in
             zip(embeddings.starts, embeddings.ends, strict=True)]  # fmt: skip
    rows = []
    for row, (path, group) in enumerate(zip(embeddings.paths.tolist(), embeddings.groups.tolist(), strict=True)):
        absolute = os.path.abspath(path)
        after = [absolute if group == path else group, *(times[row] if cut else ())]
        rows.append([int(embeddings.labels[row]), guarded_cell(absolute), *map(guarded_cell, after)])
    return {
        "columns": ["path", "label", "group", *(("start", "end") if cut else ())],
        "classes": [guarded_cell(str(name)) for name in embeddings.classes],
        "rows": rows,
    }
