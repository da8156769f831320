"""The model card of a finished run, in Markdown: what the model is, what it saw, what it does, and what is not known.

After Mitchell et al. 2019, "Model cards for model reporting" (arXiv:1810.03993).
"""

import csv
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import legend_of, markdown, markdown_code, read_records

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
Rows = Iterable[Sequence[object]]


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
    evaluated = _read(run / "eval" / summary["split"] / "metrics.json")
    by_class = _read_table(run / "eval" / summary["split"] / "per_class.csv")
    data = _read(run / "dataset.json") if (run / "dataset.json").is_file() else None
    encoder, head = (config["model"][part]["_target_"].rpartition(".")[2] for part in ("encoder", "head"))
    parts = [
        f"# {markdown(config['name'])}: {markdown(encoder)} + {markdown(head)}",
        _headline(summary, evaluated, len(by_class)),
        "## Model\n\n" + _table(("property", "value"), _model(run, config, summary, exported)),
        "## Data\n\n" + _data(config, summary, evaluated, data, by_class),
        "## Metrics\n\n" + _metrics(summary, evaluated),
        _by_class(by_class),
        *(f"### {title}\n\n![{title}]({name})" for title, name in pictures),
        "## Training\n\n" + _table(("setting", "value"), _settings(config, summary)),
        "## Limits\n\n" + _bullets(_limits(config, summary, evaluated, by_class)),
    ]
    if exported is not None and exported["files"]:
        parts.insert(3, "## Files\n\n" + _files(exported))
    parts.append("## Made with\n\n" + _table(("property", "value"), _provenance(run)))
    return "\n\n".join(parts) + "\n"


def _headline(summary: Mapping, evaluated: Mapping, classes: int) -> str:
    metrics = evaluated["metrics"]
    key = next(name for name in ("top1", "map") if name in metrics)
    also = ", which also selected the checkpoint" if summary["split_also_selected"] else ""
    return (
        f"Tells {classes} classes of videos apart. **{METRICS[key]} {metrics[key]:.4f}** on {summary['split']}{also} "
        f"({evaluated['coverage']} videos; {evaluated['protocol']})."
    )


def _model(run: Path, config: Mapping, summary: Mapping, exported: Mapping | None) -> Rows:
    yield "encoder", markdown_code(config["model"]["encoder"]["_target_"])
    yield "head", markdown_code(config["model"]["head"]["_target_"])
    if exported is not None:
        yield "parameters", f"{exported['model']['parameters']:,}"
    averaged = "best_weights" in summary and summary["best_weights"] == "ema"
    weights = "moving average" if averaged else "as trained"
    yield (
        "weights",
        f"{weights}; step {summary['best_step']} of {summary['steps']}, best {summary['monitor']} on val",
    )
    yield "started from", _start(run)
    clip = config["clip"]
    size = clip["size"] if isinstance(clip["size"], list) else [clip["size"]] * 2
    yield "input", f"clips of {clip['frames']} RGB frames, {size[0]}x{size[1]} pixels"
    yield "normalization", f"mean {clip['mean']}, std {clip['std']}, of values in [0, 1]"


def _start(run: Path) -> str:
    path = run / "starting_point.json"
    if not path.is_file():
        return "random weights"
    found = _read(path)
    sources = [
        f"{markdown(each['source'])} ({each['format']}, {each['match']:.0%} of tensors match)"
        for each in found["sources"]
    ]
    fresh = len(found["initialized"])
    return "; ".join(sources) + (f"; {fresh} tensors at random" if fresh else "")


def _files(exported: Mapping) -> str:
    rows = []
    for name, facts in exported["files"].items():
        found = facts["difference"] if "difference" in facts else None
        rows.append(
            (
                markdown_code(facts["file"]),
                name + (f", opset {facts['opset']}" if "opset" in facts else ""),
                f"{facts['bytes'] / 1e6:.1f} MB",
                "the same tensors" if found is None else f"{found['relative']:.1e}",
            )
        )
    into, outputs = exported["input"], exported["outputs"]
    lines = [
        _table(("file", "format", "size", "largest difference to PyTorch, of the largest logit"), rows),
        f"Graphs take `{into['name']}` {_spell(into['shape'])} of {into['dtype']} ({into['meaning']}) and give "
        + " and ".join(f"`{name}` {_spell(shape)}" for name, shape in outputs.items())
        + f", by {exported['probabilities']}. `card.json` holds the class names and the preprocessing.",
    ]
    return "\n\n".join(lines)


def _data(
    config: Mapping, summary: Mapping, evaluated: Mapping, data: Mapping | None, by_class: Sequence[Mapping]
) -> str:
    rows: list[tuple[str, object]] = [("dataset", markdown(config["dataset"]["name"]))]
    rows.append(("source", markdown_code(config["dataset"]["source"]["_target_"])))
    if data is not None:
        rows += [(f"videos in {split}", f"{count:,}") for split, count in data["videos"].items()]
    rows.append(("evaluated on", f"{summary['split']}, {evaluated['coverage']} videos"))
    names = [markdown(each["class"]) for each in by_class]
    more = f" and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else ""
    rows.append((f"classes ({len(names)})", ", ".join(names[:CLASSES_SHOWN]) + more))
    text = _table(("property", "value"), rows)
    if evaluated["missing"]:
        missing = [
            f"{markdown_code(each['path'])}: {markdown(each['cause'])}"
            for each in evaluated["missing"][:CLASSES_SHOWN]
        ]
        text += f"\n\nCould not be read ({len(evaluated['missing'])}):\n\n" + _bullets(missing)
    return text


def _metrics(summary: Mapping, evaluated: Mapping) -> str:
    metrics, rows = evaluated["metrics"], []
    for key, title in METRICS.items():
        if key in metrics:
            clip = f"clip_{key}"
            rows.append((title, f"{metrics[clip]:.4f}" if clip in metrics else "", f"{metrics[key]:.4f}"))
    selected = (
        f"Selected by {summary['monitor']} on val: {summary['best']:.4f}. Protocol: {evaluated['protocol']}; every "
        "video once, none replaced."
    )
    return _table((f"on {summary['split']}", "single clips", "videos"), rows) + "\n\n" + selected


def _by_class(by_class: Sequence[Mapping]) -> str:
    """All classes in the order of F1, or of many the weakest and the strongest."""
    columns = [name for name in by_class[0] if name != "class"]
    score = "f1" if "f1" in columns else columns[-1]
    ranked = sorted(by_class, key=lambda each: _number(each[score]))
    title = "### By class, the weakest first"
    if len(ranked) > CLASSES_SHOWN:
        ranked = ranked[: CLASSES_SHOWN // 2] + ranked[-CLASSES_SHOWN // 2 :]
        title = f"### By class, the {CLASSES_SHOWN // 2} weakest and strongest"
    rows = [(markdown(each["class"]), *(_short(each[name]) for name in columns)) for each in ranked]
    return f"{title}\n\n" + _table(("class", *columns), rows)


def _settings(config: Mapping, summary: Mapping) -> Rows:
    for key in SETTINGS:
        node: Any = config
        for name in key.split("."):
            node = node[name] if isinstance(node, Mapping) and name in node else None
        if node is not None:
            yield markdown_code(key), markdown_code(_short_node(node))
    yield "steps", f"{summary['steps']:,}"
    yield "time", f"{summary['minutes']:g} minutes"


def _limits(
    config: Mapping, summary: Mapping, evaluated: Mapping, by_class: Sequence[Mapping]
) -> Iterable[str]:
    yield (
        f"Measured on {summary['split']} of {markdown(config['dataset']['name'])} only. How it does on videos of "
        "other origin, lengths, frame rates or picture quality is not known."
    )
    answer = "" if "map" in evaluated["metrics"] else ", and answers one of them for every video"
    yield f"It knows these classes only{answer}, whatever else the video shows."
    yield f"The numbers hold for one protocol, {evaluated['protocol']}; another one gives others."
    yield "They are of one run (one seed); how much they vary between runs was not measured."
    yield "Nothing was measured by groups of people, places or devices that the videos show or were made with."
    if summary["split_also_selected"]:
        yield "**The split of the numbers also selected the checkpoint, so they are too high.**"
    if evaluated["missing"]:
        yield f"Videos that could not be read, and are not in the numbers: {len(evaluated['missing'])}."
    few = [
        markdown(each["class"]) for each in by_class if "support" in each and _number(each["support"]) < FEW
    ]
    if few:
        shown = ", ".join(few[:CLASSES_SHOWN]) + (", ..." if len(few) > CLASSES_SHOWN else "")
        yield f"Classes with fewer than {FEW} videos to measure on ({len(few)} of {len(by_class)}): {shown}."
    if config["clip"]["frame_order"] != "forward":
        yield f"Frames were shown {config['clip']['frame_order']}: a probe, not a model for use."


def _provenance(run: Path) -> Rows:
    environment, git = _read(run / "environment.json"), _read(run / "git.json")
    yield "run", f"{markdown(run.name)} ({_read(run / 'run.json')['id']})"
    changed = ", with changes (git.diff of the run)" if git["dirty"] else ""
    yield "code", f"{markdown(git['commit'] or git['problem'] or 'not committed')}{changed}"
    yield "command", markdown_code(environment["command"])
    packages = environment["packages"]
    named = [name for name in ("vidtrain", "torchvision", "timm", "av") if name in packages]
    yield (
        "versions",
        ", ".join([f"torch {environment['torch']}", *(f"{name} {packages[name]}" for name in named)]),
    )
    yield (
        "device",
        ", ".join(map(markdown, environment["devices"])) or f"CPU, {environment['cpus_usable']} cores",
    )
    yield "date", environment["time_utc"]


# --- Markdown ---------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: object) -> str:
    """Text that no bar in it ends: one stays in its cell after an odd number of backslashes."""
    return re.sub(r"(\\*)\|", lambda found: 2 * found[1] + r"\|", str(text))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _spell(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _short(cell: str) -> str:
    """A number of a table with four decimals at most; what is unknown stays empty."""
    return f"{float(cell):.4g}" if cell else ""


def _short_node(node: object) -> str:
    """A component as its name and values, other mappings in brackets, the rest as it is."""
    if isinstance(node, Mapping):
        kind = node["_target_"].rpartition(".")[2] if "_target_" in node else ""
        inner = [
            f"{key}={_short_node(value)}"
            for key, value in node.items()
            if key[0] != "_" and value is not None
        ]
        return f"{kind}({', '.join(inner)})"
    return f"[{', '.join(map(_short_node, node))}]" if isinstance(node, list) else str(node)


def _number(cell: str) -> float:
    return float(cell) if cell else 0.0


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"a model card needs {path}, which cannot be read ({error})") from error


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            return read_records(file)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"a model card needs {path}, which cannot be read ({error})") from error
