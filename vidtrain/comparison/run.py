"""From the runs that were read to one summary of how they compare: plain data, for the tables, charts and the page."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vidtrain.comparison.importance import importance, spread
from vidtrain.comparison.notes import Situation, notes, repeat_of, setting
from vidtrain.comparison.paired import RESAMPLED, Comparison, compare
from vidtrain.comparison.recipes import Recipe, differing, labels, recipes, short_names
from vidtrain.comparison.runs import Run
from vidtrain.config.targets import suggest
from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.runs.folder import FREE

# What changes names, speed or what is recorded, and no result
IGNORED = (*FREE, "name", "trainer.cpu_threads", "trainer.eval_batch_size", "trainer.log_every")
SHOWN_FLIPS = 200
FEWEST_TRIALS = 3  # recipes from which on it is a sweep

Plain = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is asked of a comparison; see CompareConfig."""

    metric: str | None
    baseline: str | None
    repeats: list[str]
    across_protocols: bool
    bootstrap: int
    confidence: float
    seed: int
    sweep: bool = False  # whether the runs are the trials of one


@dataclass(frozen=True)
class Compared:
    """The summary, and what is too long for it: each comparison by (baseline, recipe), with the videos that came out
    differently."""

    summary: Plain
    comparisons: dict[tuple[int, int], Comparison]


def compare_runs(runs: Sequence[Run], options: Options, console) -> Compared:
    """Groups runs into recipes and holds every recipe against the baseline, on the videos that they share.

    Raises `UserError` for a metric that not all runs report and for a baseline that is none of the runs.
    """
    metric = _metric(runs, options.metric)
    ignored = (*IGNORED, *options.repeats)
    apart = [(run.split, run.protocol, run.predictions.several) for run in runs]
    keys, found = _recipes(runs, apart, ignored)
    baseline = found[_baseline(runs, found, options.baseline)]
    asked = [apart[each.runs[0]] for each in found]
    of_baseline = apart[baseline.runs[0]]
    alike = [
        each for each, how in zip(found, asked, strict=True)
        if how == of_baseline or (options.across_protocols and how[2] == of_baseline[2])
    ]  # fmt: skip
    several = of_baseline[2]
    tested = metric if metric in RESAMPLED else ("exact_match" if several else "top1")

    comparisons: dict[tuple[int, int], Comparison] = {}
    disjoint = []
    others = [each for each in alike if each is not baseline]
    with console.phase("comparing", len(others)):
        for done, other in enumerate(others, start=1):
            pair = compare(
                [runs[each].predictions for each in baseline.runs],
                [runs[each].predictions for each in other.runs],
                _same_seeds(runs, baseline, other, options.repeats),
                tested,
                options.bootstrap,
                options.confidence,
                options.seed,
            )
            if pair is None:
                disjoint.append(other.number)
            else:
                changed = [video for video in pair.videos if video.baseline != video.other]
                comparisons[baseline.number, other.number] = replace(pair, videos=changed)
            console.advance(done, {"recipe": other.number})

    compared = [each.number for each in alike if each.number not in disjoint]
    trials = [run for each in found if each.number in compared for run in each.runs]
    known = [run for run in trials if _value(runs[run], metric) is not None]
    swept = {key: [row[run] for run in known] for key, row in keys.items()}
    repeated = {key: [setting(runs[run], key) for run in known] for key in options.repeats}
    credit = importance(
        [_value(runs[run], metric) for run in known],
        {key: row for key, row in {**swept, **repeated}.items() if len(set(map(str, row))) > 1},
    )
    is_sweep = len(compared) >= (2 if options.sweep else FEWEST_TRIALS)
    chosen = _chosen(runs, [each for each in found if each.number in compared]) if is_sweep else None
    names, told = _names(runs), labels(found, compared)
    settings = differing([runs[each.runs[0]].settings for each in found], ignored)
    summary: Plain = {
        "metric": metric,
        "tested": tested,
        "higher_is_better": DIRECTIONS[metric] == "max",
        "tested_higher_is_better": DIRECTIONS[tested] == "max",
        "confidence": options.confidence,
        "draws": options.bootstrap,
        "seed": options.seed,
        "repeats": options.repeats,
        "baseline": baseline.number,
        "keys": short_names(list(keys)),
        "recipes": [
            _recipe(each, runs, told[each.number], names, metric, each.number in compared) for each in found
        ],
        "runs": [
            _run(run, names[place], _number(found, place), keys, place, metric, options.repeats)
            for place, run in enumerate(runs)
        ],
        "settings": settings,
        "comparisons": [_comparison(pair, numbers) for numbers, pair in comparisons.items()],
        "importance": [asdict(each) for each in credit] if is_sweep else [],
        "is_sweep": is_sweep and bool(keys) and len(known) > 1,
        "chosen": chosen,
        "notes": notes(
            Situation(runs, found, asked, alike, disjoint, comparisons, metric, tested),
            options.repeats,
            options.confidence,
            options.across_protocols,
        ),
    }
    return Compared(summary, comparisons)


# --- what there is to compare -----------------------------------------------------------------------------


def _metric(runs: Sequence[Run], asked: str | None) -> str:
    reported = [set(run.metrics) for run in runs]
    shared = sorted(set.intersection(*reported) & set(DIRECTIONS))
    metric = asked or next((name for name in ("top1", "exact_match") if name in shared), None)
    if metric is None:
        raise UserError(
            f"the runs do not share top1 or exact_match; choose metric= from {', '.join(shared) or 'none'}"
        )
    if metric not in shared:
        lacking = [str(run.folder) for run in runs if metric not in run.metrics]
        why = f"{lacking[0]} does not report it" if lacking else "it is not known which way is better"
        raise UserError(f"metric={metric}: {why}{suggest(metric, shared)}")
    if not any(_value(run, metric) is not None for run in runs):
        raise UserError(f"metric={metric} is not a number in any of the runs; choose another")
    return metric


def _recipes(runs: Sequence[Run], apart: Sequence[Any], ignored: Sequence[str]):
    """Recipes by settings. Runs whose settings are all the same are told apart by their training data, and where all
    are one recipe by their code, if that differs."""
    settings, overrides = [run.settings for run in runs], [run.overrides for run in runs]
    keys, found = recipes(settings, overrides, apart, ignored)
    if any(len({run.digests["train"] for run in _telling(runs, each)}) > 1 for each in found):
        settings = [{**run.settings, "training data": _data(run)} for run in runs]
        keys, found = recipes(settings, overrides, apart, ignored)
    commits = {run.commit for run in runs}
    if len(found) == 1 and len(commits) > 1:
        settings = [{**one, "commit": run.commit} for one, run in zip(settings, runs, strict=True)]
        keys, found = recipes(settings, overrides, apart, ignored)
    return keys, found


def _telling(runs: Sequence[Run], recipe: Recipe) -> list[Run]:
    """The runs of a recipe that say what they were trained on."""
    return [runs[run] for run in recipe.runs if "train" in runs[run].digests]


def _data(run: Run) -> str | None:
    return run.digests["train"][:8] if "train" in run.digests else None


def _baseline(runs: Sequence[Run], found: Sequence[Recipe], asked: str | None) -> int:
    """The place of the baseline among the recipes."""
    if asked is None:
        return 0
    folders = [run.folder.resolve() for run in runs]
    if Path(asked).resolve() not in folders:
        raise UserError(
            f"baseline={asked} is none of the runs{suggest(asked, [str(run.folder) for run in runs])}"
        )
    return _number(found, folders.index(Path(asked).resolve())) - 1


def _number(found: Sequence[Recipe], place: int) -> int:
    return next(each.number for each in found if place in each.runs)


def _same_seeds(runs: Sequence[Run], baseline: Recipe, other: Recipe, repeats: Sequence[str]):
    """The runs of two recipes that share what is repeated, each taken once."""
    if len(baseline.runs) == len(other.runs) == 1:
        return [(0, 0)]
    free = dict(enumerate([repeat_of(runs[run], repeats) for run in other.runs]))
    pairs = []
    for a, run in enumerate(baseline.runs):
        b = next((b for b, what in free.items() if what == repeat_of(runs[run], repeats)), None)
        if b is not None:
            pairs.append((a, b))
            del free[b]
    return pairs


def _value(run: Run, metric: str) -> float | None:
    return run.metrics[metric]


def _chosen(runs: Sequence[Run], compared: Sequence[Recipe]) -> Plain | None:
    """The recipe that is the best on val in the mean of its runs, which is how one chooses; None where runs were not
    selected by the same metric."""
    monitors = {runs[run].monitor for each in compared for run in each.runs}
    if len(monitors) != 1:
        return None
    (monitor,) = monitors
    means = {each.number: spread([runs[run].best for run in each.runs])[0] for each in compared}
    number = (max if DIRECTIONS[monitor] == "max" else min)(means, key=lambda each: means[each])
    return {"recipe": number, "monitor": monitor, "mean": means[number]}


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders of runs, below what they have in common."""
    folders = [os.path.abspath(run.folder) for run in runs]
    if len(folders) < 2:
        return [os.path.basename(each) for each in folders]
    common = os.path.commonpath([os.path.dirname(each) for each in folders])
    return [os.path.relpath(each, common) for each in folders]


# --- as plain data ----------------------------------------------------------------------------------------


def _recipe(
    recipe: Recipe, runs: Sequence[Run], label: str, names: Sequence[str], metric: str, compared: bool
) -> Plain:
    mine = [runs[run] for run in recipe.runs]
    first = mine[0]
    averages = {}
    for name in first.metrics:
        values = [run.metrics[name] for run in mine if name in run.metrics and run.metrics[name] is not None]
        averages[name] = spread(values) if values else (None, None)
    best = [run.best for run in mine if run.monitor == first.monitor]
    return {
        "number": recipe.number,
        "label": label or ("all runs" if len(mine) == len(runs) else names[recipe.runs[0]]),
        "settings": recipe.settings,
        "runs": [names[run] for run in recipe.runs],
        "n": len(mine),
        "split": first.split,
        "protocol": first.protocol,
        "compared": compared,
        "values": [_value(run, metric) for run in mine],
        "mean": averages[metric][0],
        "deviation": averages[metric][1],
        "metrics": averages,
        "monitor": first.monitor,
        "best": spread(best),
    }


def _run(run: Run, name: str, recipe: int, keys, place: int, metric: str, repeats: Sequence[str]) -> Plain:
    curve = run.validated(metric)
    final = run.validated(run.monitor)
    return {
        "name": name,
        "folder": str(run.folder),
        "recipe": recipe,
        "settings": {key: row[place] for key, row in keys.items()},
        "repeats": {key: setting(run, key) for key in repeats},
        "monitor": run.monitor,
        "best": run.best,
        "best_step": run.best_step,
        "final": final[-1][1] if final else None,
        "steps": run.steps,
        "minutes": run.minutes,
        "split": run.split,
        "protocol": run.protocol,
        "coverage": run.coverage,
        "commit": run.commit,
        "metrics": run.metrics,
        "curve": curve,
    }


def _comparison(pair: Comparison, numbers: tuple[int, int]) -> Plain:
    low, high = pair.widest
    told_apart = low > 0 or high < 0
    flipped = [each for each in pair.videos if each.flipped]
    better = DIRECTIONS[pair.metric] == "max"
    verdict = "not told apart"
    if told_apart:
        verdict = "better" if (pair.difference > 0) == better else "worse"
    plain = asdict(replace(pair, videos=[]))
    return {
        **{key: value for key, value in plain.items() if key != "videos"},
        "baseline": numbers[0],
        "other": numbers[1],
        "widest": pair.widest,
        "verdict": verdict,
        "gained": sum(each.other > 0.5 for each in flipped),
        "lost": sum(each.baseline > 0.5 for each in flipped),
        "flips": [asdict(each) for each in flipped[:SHOWN_FLIPS]],
    }
