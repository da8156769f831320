"""Ranks labels by how likely they are wrong, and videos by how useful a label would be, from embeddings.

python -m vidtrain.labels errors outputs/embed/mine
python -m vidtrain.labels next outputs/embed/mine pool=outputs/embed/new count=100
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from vidtrain.app.launch import fail, launch
from vidtrain.config.dataset_schemas import LabelsConfig
from vidtrain.config.overrides import words_to_overrides
from vidtrain.config.targets import check_settings
from vidtrain.errors import UserError

MOST_SHOWN = 10  # rows of a table on a terminal
ONLY = {"errors": ("folds", "rank_by", "shown"), "next": ("pool", "strategy", "count", "seed")}


def check(cfg: LabelsConfig) -> list[tuple[str, str]]:
    faults = check_settings(cfg, LabelsConfig)
    if cfg.action is None:
        faults.append(("action", "must be given: python -m vidtrain.labels errors EMBEDDINGS, or next EMBEDDINGS"))
    if cfg.embeddings is None:
        faults.append(("embeddings", "must be given: the folder or file that python -m vidtrain.embed made"))
    defaults = LabelsConfig()
    for action, keys in ONLY.items():
        if cfg.action in ONLY and cfg.action != action:
            idle = [key for key in keys if getattr(cfg, key) != getattr(defaults, key)]
            faults += [(key, f"goes with {action}; leave it out") for key in idle]
    if cfg.action == "next" and cfg.pool is None:
        faults.append(("pool", "must be given: embeddings of the videos to choose from"))
    return faults


def labels(cfg: LabelsConfig) -> None:
    errors(cfg) if cfg.action == "errors" else choose(cfg)


def errors(cfg: LabelsConfig) -> None:
    """Writes suspects.csv, probabilities.npz and report.html."""
    from vidtrain.embeddings.pages import correcting_page, picture_folder, suspect_rows
    from vidtrain.embeddings.ranking import find_suspects
    from vidtrain.embeddings.store import Embeddings
    from vidtrain.files.atomic import replacing_path, write_text_atomic
    from vidtrain.files.escaping import csv_text
    from vidtrain.reports.pages import replace_page
    from vidtrain.tracking.console import make_console

    assert cfg.embeddings is not None  # see check
    console, whole = make_console(is_main=True), Embeddings.open(cfg.embeddings)
    rows = whole.of_split(cfg.split)
    embeddings = whole.take(rows)
    out = output_folder(cfg, "label_errors")
    suspects, probabilities = find_suspects(embeddings, cfg.folds, cfg.rank_by)
    if embeddings.encoder["learned_from"] is not None:
        console.warn(
            f"the encoder was trained on labels, in {embeddings.encoder['learned_from']}: wrong labels that it "
            "has learned look right; embeddings of a frozen encoder show more"
        )
    table = suspect_rows(embeddings, suspects)
    write_text_atomic(out / "suspects.csv", csv_text(table))
    with replacing_path(out / "probabilities.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, probabilities=probabilities, paths=embeddings.paths, classes=embeddings.classes)
    page = out / "report.html"
    pictures = picture_folder(cfg.embeddings)
    html = partial(correcting_page, embeddings, suspects, rows, pictures, cfg.shown, cfg.folds)
    replace_page(page, html, console)
    shown = [[Path(str(row[0])).name, *map(str, row[1:5])] for row in table[1 : MOST_SHOWN + 1]]
    likely = int(suspects.likely.sum())
    title = f"{likely} of {len(embeddings)} labels are suspect, about {suspects.estimate:.0f} wrong; the first"
    console.table(title, ("", "label", "or", "p(label)", "p(or)"), shown)
    console.info(f"{suspects.accuracy:.1%} of all labels are the most probable class of their video")
    console.info(f"all in {out / 'suspects.csv'}; correct them on {page}")


def choose(cfg: LabelsConfig) -> None:
    """Writes to_label.csv."""
    from vidtrain.embeddings.ranking import choose_next
    from vidtrain.embeddings.store import Embeddings
    from vidtrain.files.atomic import write_text_atomic
    from vidtrain.files.escaping import csv_text
    from vidtrain.tracking.console import make_console

    assert cfg.embeddings is not None and cfg.pool is not None  # see check
    labeled, pool = Embeddings.open(cfg.embeddings), Embeddings.open(cfg.pool)
    labeled.check_comparable(pool.encoder, cfg.embeddings)
    known = {path for row, path in enumerate(labeled.paths.tolist()) if labeled.names_of(row)}
    labeled = labeled.take(labeled.of_split(cfg.split))
    pool = pool.take(np.flatnonzero([path not in known for path in pool.paths.tolist()]))
    if not len(pool):
        raise UserError(f"pool={cfg.pool} has no video that is not in {cfg.embeddings} already")
    out = output_folder(cfg, "label_next")
    chosen, uncertainty = choose_next(labeled, pool, cfg.strategy, cfg.count, cfg.seed)
    values = [""] * len(chosen) if uncertainty is None else [f"{value:.6f}" for value in uncertainty.tolist()]
    rows = [(str(pool.paths[row]), value) for row, value in zip(chosen.tolist(), values, strict=True)]
    write_text_atomic(out / "to_label.csv", csv_text([("path", cfg.strategy), *rows]))
    console = make_console(is_main=True)
    console.table(f"{len(rows)} of {len(pool)} videos to label", ("path", cfg.strategy), rows[:MOST_SHOWN])
    console.info(f"all in {out / 'to_label.csv'}")


def output_folder(cfg: LabelsConfig, name: str) -> Path:
    """`out`, or the folder `name` beside the embeddings. Raises `UserError` if it cannot be written."""
    from vidtrain.files.folders import check_writable

    assert cfg.embeddings is not None  # see check
    place = Path(cfg.embeddings)
    out = Path(cfg.out or (place if place.is_dir() else place.parent) / name)
    check_writable(out)
    return out


def main() -> None:
    try:
        expected = "one of errors or next, and the embeddings of labeled videos"
        sys.argv[1:] = words_to_overrides(sys.argv[1:], ("action", "embeddings"), expected)
    except UserError as error:
        fail(str(error))
    launch("labels", labels, check)


if __name__ == "__main__":
    main()
