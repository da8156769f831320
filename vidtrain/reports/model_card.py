"""The model card of a finished run, in Markdown: what the model is, what it saw, what it does, and what is not known.

After Mitchell et al. 2019, "Model cards for model reporting" (arXiv:1810.03993). Its text is in
templates/model_card.md.jinja.
"""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.atomic import read_json, write_text_atomic
from vidtrain.files.escaping import legend_of, read_records
from vidtrain.reports.pages import render

NAME = "MODEL_CARD.md"
METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "map": "mean average precision, macro",
    "map_micro": "mean average precision, micro",
    "exact_match": "all labels right",
    "f1_macro": "F1, macro",
    "f1_weighted": "F1, weighted",
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "loss": "loss",
}
CLASSES_SHOWN = 30
FEW = 10  # videos of a class below which its numbers mean little
SETTINGS = (
    "optimizer", "schedule", "loss", "augmentation", "stage", "trainer.epochs", "trainer.batch_size",
    "trainer.accumulation", "trainer.precision", "trainer.ema", "trainer.clip_grad", "clip.train_clips", "seed",
)  # fmt: skip
PICTURES = {"curves.png": "Training curves", "confusion_{split}.png": "Confusion matrix on {split}"}


def write_model_card(
    run: Path, out: Path, config: Mapping[str, Any], exported: Mapping[str, Any] | None
) -> Path:
    """Writes MODEL_CARD.md of the run folder `run` into `out`, its pictures beside it; returns the card's path.

    `config` is the run's configuration with its references followed, `exported` the card of the files that were
    exported, or None. Raises `UserError` naming a file that the run should have left.
    """
    out.mkdir(parents=True, exist_ok=True)
    split = _read(run / "summary.json")["split"]
    shown = []
    for pattern, title in PICTURES.items():
        picture = run / "plots" / pattern.format(split=split)
        if picture.is_file():  # no confusion matrix where videos have several labels
            for file in filter(Path.is_file, (picture, legend_of(picture))):
                shutil.copyfile(file, out / file.name)
            shown.append((title.format(split=split), picture.name))
    path = out / NAME
    write_text_atomic(path, model_card(run, config, exported, shown))
    return path


def model_card(
    run: Path,
    config: Mapping[str, Any],
    exported: Mapping[str, Any] | None,
    pictures: Sequence[tuple[str, str]],
) -> str:
    """The card as text; `pictures` are (title, file name)."""
    summary = _read(run / "summary.json")
    evaluation, start, data = (
        run / place for place in (f"eval/{summary['split']}", "starting_point.json", "dataset.json")
    )
    by_class = _read_table(evaluation / "per_class.csv")
    score = "f1" if "f1" in by_class[0] else list(by_class[0])[-1]
    return render(
        "model_card.md.jinja",
        config=config,
        summary=summary,
        evaluated=_read(evaluation / "metrics.json"),
        exported=exported,
        start=_read(start) if start.is_file() else None,
        data=_read(data) if data.is_file() else None,
        by_class=by_class,
        weakest_first=sorted(by_class, key=lambda row: _number(row[score])),
        few=[row for row in by_class if "support" in row and _number(row["support"]) < FEW],
        least=FEW,
        most_listed=CLASSES_SHOWN,
        titles=METRICS,
        pictures=pictures,
        settings=_settings(config),
        run=run.name,
        run_id=_read(run / "run.json")["id"],
        git=_read(run / "git.json"),
        environment=_read(run / "environment.json"),
    )


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings that a reader asks for first, as far as they are set."""
    settings = {}
    for key in SETTINGS:
        node: Any = config
        for name in key.split("."):
            node = node[name] if isinstance(node, Mapping) and name in node else None
        if node is not None:
            settings[key] = _spell(node)
    return settings


def _spell(node: object) -> str:
    """A component as its name and values, other mappings in brackets, the rest as it is."""
    if isinstance(node, Mapping):
        inner = [
            f"{key}={_spell(value)}" for key, value in node.items() if key[0] != "_" and value is not None
        ]
        kind = node["_target_"].rpartition(".")[2] if "_target_" in node else ""
        return f"{kind}({', '.join(inner)})"
    return f"[{', '.join(map(_spell, node))}]" if isinstance(node, list) else str(node)


def _number(cell: str) -> float:
    return float(cell) if cell else 0.0


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "a model card needs it")


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return read_records(file)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"a model card needs {path}, which cannot be read ({error})") from error
