"""Computes one vector for each video with a frozen encoder, and compares videos by these vectors.

python -m vidtrain.embed checkpoint=outputs/motion/NAME folder out=outputs/embed/mine
python -m vidtrain.embed checkpoint=outputs/motion/NAME clip.mp4 search=outputs/embed/mine
"""

import os
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from vidtrain.app.launch import launch
from vidtrain.build.checkpoint_loader import check_source
from vidtrain.config.schemas import EmbedConfig
from vidtrain.config.targets import check_settings, check_targets
from vidtrain.files.folders import check_writable, install_hint

if TYPE_CHECKING:  # --help should not wait for torch
    from vidtrain.embeddings.store import Embeddings
    from vidtrain.training.run import Console

MOST_SHOWN = 10  # rows of a table on a terminal


def check(cfg: DictConfig) -> list[tuple[str, str]]:
    faults = check_targets(cfg) + check_settings(cfg, EmbedConfig)
    faults += check_source(cfg, ("model",))
    if cfg.pretrained is not None and cfg.videos is None and cfg.dataset is None:
        faults.append(("videos", "must be given, or a dataset=OPTION: published weights name no dataset"))
    if cfg.videos is not None and cfg.dataset is not None:
        faults.append(("videos", "and dataset are both given; leave one of them out"))
    if cfg.videos is not None and not isinstance(cfg.videos, str | ListConfig):
        faults.append(("videos", f"{cfg.videos} must be a file, folder, pattern or listing, or a list of them"))
    if cfg.frame_rate is not None and cfg.videos is None:
        faults.append(("frame_rate", "belongs to videos= that are folders of images; a dataset has its own"))
    if "parquet" in cfg.formats and find_spec("pyarrow") is None:
        faults.append(("formats", f"parquet needs pyarrow: {install_hint('parquet')}; or leave parquet out"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        why = "embed runs in one process: without torchrun, start it once for each share of videos"
        faults.append(("device", why))
    return faults


def embed(cfg: DictConfig) -> None:
    from vidtrain.embeddings.encoder import embed, open_encoder
    from vidtrain.embeddings.store import EXPORTS, FILE, PROGRESS, Embeddings
    from vidtrain.files.folders import RunLock
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import join_ranks

    console = make_console(is_main=True)
    out = Path(cfg.out or f"outputs/embed/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    earlier = None if cfg.search is None else Embeddings.open(cfg.search)
    check_writable(out)
    with RunLock(out), join_ranks(cfg.device) as ranks:
        opened = open_encoder(cfg, ranks, console)
        if earlier is not None:  # a mismatch is reported before anything is computed
            earlier.check_comparable(opened.about, cfg.search)
        embeddings = embed(opened, cfg, out, ranks, console)
        embeddings.save(out / FILE)
        (out / PROGRESS).unlink()
        for name in cfg.formats:
            EXPORTS[name](embeddings, out / name)
        compare(embeddings, earlier, cfg, out, console)
    console.info(f"{len(embeddings)} vectors of {embeddings.vectors.shape[1]} in {out / FILE}")


def compare(
    embeddings: "Embeddings", earlier: "Embeddings | None", cfg: DictConfig, out: Path, console: "Console"
) -> None:
    """Writes neighbors and near duplicates, among the videos or in earlier embeddings, as tables and a page."""
    from vidtrain.embeddings.pages import embeddings_page
    from vidtrain.embeddings.ranking import Likeness
    from vidtrain.files.atomic import write_text_atomic
    from vidtrain.files.escaping import csv_text
    from vidtrain.reports.pages import replace_page

    alike = Likeness.of(embeddings, earlier, cfg.neighbors, cfg.near_duplicates)
    write_text_atomic(out / "neighbors.csv", csv_text(alike.neighbor_rows()))
    write_text_atomic(out / "near_duplicates.csv", csv_text(alike.duplicate_rows()))
    if earlier is not None and cfg.neighbors:
        columns, *rows = alike.neighbor_rows()
        console.table(f"nearest in {cfg.search}", columns, rows[:MOST_SHOWN])
    if cfg.near_duplicates is not None:
        console.info(f"{len(alike.duplicates)} pairs with a cosine of {cfg.near_duplicates} or more across sets")
    page = out / "report.html"
    replace_page(page, partial(embeddings_page, alike, cfg.map, out, cfg.search), console)
    console.info(f"page {page}")


def main() -> None:
    launch("embed", embed, check, bare_words_are="videos")


if __name__ == "__main__":
    main()
