"""From the runs that were read to one summary of how they compare: plain data, for the tables, charts and the page."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vidtrain.comparison.paired import RESAMPLED, Comparison, compare
from vidtrain.comparison.recipes import Recipe, differing, labels, recipes, short_names
from vidtrain.comparison.runs import Run
from vidtrain.comparison.statistics import importance, spread
from vidtrain.config.targets import suggest
from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.runs.folder import FREE
from vidtrain.tracking.console import Console, NullConsole

# What changes names, speed or what is recorded, and no result
IGNORED = (*FREE, "name", "trainer.cpu_threads", "trainer.eval_batch_size", "trainer.log_every")
SHOWN_FLIPS = 200
FEWEST_TRIALS = 3  # recipes from which on it is a sweep
LISTED = 8  # runs or recipes in a note

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
class Study:
    """What is compared: the runs as recipes, and the recipes that may be compared with the baseline, which is one of
    them. `keys` are the swept settings with every run's value."""

    runs: Sequence[Run]
    recipes: Sequence[Recipe]
    keys: Mapping[str, Sequence[Any]]
    baseline: Recipe
    alike: Sequence[Recipe]
    metric: str
    tested: str  # the metric that intervals are of
    ignored: Sequence[str]

    def runs_of(self, recipe: Recipe) -> list[Run]:
        return [self.runs[place] for place in recipe.runs]


Comparisons = dict[tuple[int, int], Comparison]


@dataclass(frozen=True)
class Compared:
    """The summary, and what is too long for it: each comparison by (baseline, recipe), with the videos that came out
    differently."""

    summary: Plain
    comparisons: Comparisons


def compare_runs(runs: Sequence[Run], options: Options, console: Console | NullConsole) -> Compared:
    """Groups runs into recipes and compares every recipe with the baseline, on the videos that they share.

    Raises `UserError` for a metric that not all runs report and for a baseline that is none of the runs.
    """
    study = _study(runs, options)
    others = [recipe for recipe in study.alike if recipe is not study.baseline]
    comparisons: Comparisons = {}
    with console.phase("comparing", len(others)):
        for done, other in enumerate(others, start=1):
            pair = compare(
                [run.predictions for run in study.runs_of(study.baseline)],
                [run.predictions for run in study.runs_of(other)],
                _same_seeds(study, other, options.repeats),
                study.tested,
                options.bootstrap,
                options.confidence,
                options.seed,
            )
            if pair is not None:
                changed = [video for video in pair.videos if video.baseline != video.other]
                comparisons[study.baseline.number, other.number] = replace(pair, videos=changed)
            console.advance(done, {"recipe": other.number})
    return Compared(_summary(study, comparisons, options), comparisons)


# --- what there is to compare -----------------------------------------------------------------------------


def _study(runs: Sequence[Run], options: Options) -> Study:
    metric = _metric(runs, options.metric)
    ignored = (*IGNORED, *options.repeats)
    keys, grouped = _recipes(runs, ignored)
    baseline = _recipe_of(grouped, _place_of_baseline(runs, options.baseline))
    how = runs[baseline.runs[0]].how
    tested = metric if metric in RESAMPLED else ("exact_match" if how.several else "top1")
    alike = [
        recipe
        for recipe in grouped
        if (other := runs[recipe.runs[0]].how) == how
        or (options.across_protocols and other.several == how.several)
    ]
    return Study(runs, grouped, keys, baseline, alike, metric, tested, ignored)


def _metric(runs: Sequence[Run], wanted: str | None) -> str:
    shared = sorted(set.intersection(*(set(run.metrics) for run in runs)) & set(DIRECTIONS))
    metric = wanted or next((name for name in ("top1", "exact_match") if name in shared), None)
    if metric is None:
        raise UserError(
            f"the runs do not share top1 or exact_match; choose metric= from {', '.join(shared) or 'none'}"
        )
    if metric not in shared:
        lacking = [str(run.folder) for run in runs if metric not in run.metrics]
        why = f"{lacking[0]} does not report it" if lacking else "it is not known which way is better"
        raise UserError(f"metric={metric}: {why}{suggest(metric, shared)}")
    if all(run.metrics[metric] is None for run in runs):
        raise UserError(f"metric={metric} is not a number in any of the runs; choose another")
    return metric


def _recipes(runs: Sequence[Run], ignored: Sequence[str]) -> tuple[dict[str, list[Any]], list[Recipe]]:
    """Recipes by settings. Runs whose settings are all the same are told apart by their training data, and where all
    are one recipe by their code, if that differs."""
    settings, overrides = [run.settings for run in runs], [run.overrides for run in runs]
    how = [run.how for run in runs]
    data = [run.digests["train"][:8] if "train" in run.digests else None for run in runs]
    keys, grouped = recipes(settings, overrides, how, ignored)
    if any(len({data[run] for run in recipe.runs} - {None}) > 1 for recipe in grouped):
        settings = [{**own, "training data": digest} for own, digest in zip(settings, data, strict=True)]
        keys, grouped = recipes(settings, overrides, how, ignored)
    if len(grouped) == 1 and len({run.commit for run in runs}) > 1:
        settings = [{**own, "commit": run.commit} for own, run in zip(settings, runs, strict=True)]
        keys, grouped = recipes(settings, overrides, how, ignored)
    return keys, grouped


def _place_of_baseline(runs: Sequence[Run], wanted: str | None) -> int:
    """The place of the baseline's run among all."""
    if wanted is None:
        return 0
    folders = [run.folder.resolve() for run in runs]
    if Path(wanted).resolve() not in folders:
        raise UserError(
            f"baseline={wanted} is none of the runs{suggest(wanted, [str(run.folder) for run in runs])}"
        )
    return folders.index(Path(wanted).resolve())


def _recipe_of(grouped: Sequence[Recipe], run: int) -> Recipe:
    return next(recipe for recipe in grouped if run in recipe.runs)


def _same_seeds(study: Study, other: Recipe, repeats: Sequence[str]) -> list[tuple[int, int]]:
    """The runs of the baseline and of another recipe that share what is repeated, each taken once."""
    if len(study.baseline.runs) == len(other.runs) == 1:
        return [(0, 0)]
    free = {b: _repeat_of(run, repeats) for b, run in enumerate(study.runs_of(other))}
    pairs = []
    for a, run in enumerate(study.runs_of(study.baseline)):
        b = next((b for b, repeat in free.items() if repeat == _repeat_of(run, repeats)), None)
        if b is not None:
            pairs.append((a, b))
            del free[b]
    return pairs


def _repeat_of(run: Run, repeats: Sequence[str]) -> dict[str, Any]:
    return {key: run.settings[key] if key in run.settings else None for key in repeats}


# --- as plain data ----------------------------------------------------------------------------------------


def _summary(study: Study, comparisons: Comparisons, options: Options) -> Plain:
    baseline, metric = study.baseline, study.metric
    held = {number for _, number in comparisons} | {baseline.number}
    compared = [recipe for recipe in study.recipes if recipe.number in held]
    trials = [place for recipe in compared for place in recipe.runs]
    known = [place for place in trials if study.runs[place].metrics[metric] is not None]
    is_sweep = len(compared) >= (2 if options.sweep else FEWEST_TRIALS)
    names, told = _names(study.runs), labels(study.recipes, held)
    return {
        "metric": metric,
        "tested": study.tested,
        "higher_is_better": DIRECTIONS[metric] == "max",
        "tested_higher_is_better": DIRECTIONS[study.tested] == "max",
        "confidence": options.confidence,
        "draws": options.bootstrap,
        "seed": options.seed,
        "repeats": options.repeats,
        "baseline": baseline.number,
        "keys": short_names(list(study.keys)),
        "recipes": [
            {**_recipe(study, recipe, told[recipe.number], names), "compared": recipe.number in held}
            for recipe in study.recipes
        ],
        "runs": [_run(study, place, names[place], options.repeats) for place in range(len(study.runs))],
        "settings": differing([study.runs_of(recipe)[0].settings for recipe in study.recipes], study.ignored),
        "comparisons": [_comparison(pair, numbers) for numbers, pair in comparisons.items()],
        "importance": _importance(study, known, options.repeats) if is_sweep else [],
        "is_sweep": is_sweep and bool(study.keys) and len(known) > 1,
        "chosen": _chosen(study, compared) if is_sweep else None,
        "notes": list(_notes(study, comparisons, options)),
    }


def _importance(study: Study, known: Sequence[int], repeats: Sequence[str]) -> list[Plain]:
    """What each setting, or what is repeated, accounts for between the `known` runs."""
    values = [study.runs[place].metrics[study.metric] for place in known]
    repeated = [_repeat_of(study.runs[place], repeats) for place in known]
    rows = {key: [row[place] for place in known] for key, row in study.keys.items()}
    rows |= {key: [of_run[key] for of_run in repeated] for key in repeats}
    varied = {key: row for key, row in rows.items() if len(set(map(str, row))) > 1}
    return [asdict(row) for row in importance([value for value in values if value is not None], varied)]


def _chosen(study: Study, compared: Sequence[Recipe]) -> Plain | None:
    """The recipe that is the best on val in the mean of its runs, which is how one chooses; None where runs were not
    selected by the same metric."""
    monitors = {run.monitor for recipe in compared for run in study.runs_of(recipe)}
    if len(monitors) != 1:
        return None
    (monitor,) = monitors
    means = {recipe.number: spread([run.best for run in study.runs_of(recipe)])[0] for recipe in compared}
    number = (max if DIRECTIONS[monitor] == "max" else min)(means, key=lambda number: means[number])
    return {"recipe": number, "monitor": monitor, "mean": means[number]}


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders of runs, below what they have in common."""
    folders = [os.path.abspath(run.folder) for run in runs]
    common = os.path.commonpath([os.path.dirname(folder) for folder in folders])
    return [os.path.relpath(folder, common) for folder in folders]


def _recipe(study: Study, recipe: Recipe, label: str, names: Sequence[str]) -> Plain:
    runs = study.runs_of(recipe)
    first = runs[0]
    averages: dict[str, tuple[float | None, float | None]] = {}
    for name in first.metrics:
        values = [run.metrics[name] for run in runs if name in run.metrics]
        known = [value for value in values if value is not None]
        averages[name] = spread(known) if known else (None, None)
    return {
        "number": recipe.number,
        "label": label or ("all runs" if len(runs) == len(study.runs) else names[recipe.runs[0]]),
        "settings": recipe.settings,
        "runs": [names[place] for place in recipe.runs],
        "n": len(runs),
        "split": first.split,
        "protocol": first.protocol,
        "values": [run.metrics[study.metric] for run in runs],
        "mean": averages[study.metric][0],
        "deviation": averages[study.metric][1],
        "metrics": averages,
        "monitor": first.monitor,
        "best": spread([run.best for run in runs if run.monitor == first.monitor]),
    }


RUN_KEYS = (
    "monitor", "best", "best_step", "steps", "minutes", "split", "protocol", "coverage", "commit", "metrics",
)  # fmt: skip


def _run(study: Study, place: int, name: str, repeats: Sequence[str]) -> Plain:
    run = study.runs[place]
    final = run.validated(run.monitor)
    return {
        "name": name,
        "folder": str(run.folder),
        "recipe": _recipe_of(study.recipes, place).number,
        "settings": {key: row[place] for key, row in study.keys.items()},
        "repeats": _repeat_of(run, repeats),
        **{key: getattr(run, key) for key in RUN_KEYS},
        "final": final[-1][1] if final else None,
        "curve": run.validated(study.metric),
    }


def _comparison(pair: Comparison, numbers: tuple[int, int]) -> Plain:
    low, high = pair.widest
    verdict = "not told apart"
    if low > 0 or high < 0:
        verdict = "better" if (pair.difference > 0) == (DIRECTIONS[pair.metric] == "max") else "worse"
    flipped = [video for video in pair.videos if video.flipped]
    plain = asdict(replace(pair, videos=[]))
    del plain["videos"]
    return {
        **plain,
        "baseline": numbers[0],
        "other": numbers[1],
        "widest": pair.widest,
        "verdict": verdict,
        "gained": sum(video.other > 0.5 for video in flipped),
        "lost": sum(video.baseline > 0.5 for video in flipped),
        "flips": [asdict(video) for video in flipped[:SHOWN_FLIPS]],
    }


# --- what a reader must know before believing it ----------------------------------------------------------


def _notes(study: Study, comparisons: Comparisons, options: Options) -> Iterator[str]:
    yield from _on_protocols(study, options.across_protocols)
    yield from _on_videos(study, comparisons)
    yield from _on_data(study.runs)
    yield from _on_seeds(study, comparisons, options.repeats)
    if len(comparisons) > 1:
        expected = len(comparisons) * (1 - options.confidence)
        yield (
            f"{len(comparisons)} recipes are compared with the baseline: were all equally good, about {expected:.2g} "
            f"of their intervals at {options.confidence:.0%} would miss 0 by chance. Confirm a winner on new seeds."
        )
    yield from _on_runs(study.runs)


def _on_protocols(study: Study, across_protocols: bool) -> Iterator[str]:
    counts = Counter(run.how for run in study.runs)
    if len(counts) > 1:
        listed = "; ".join(
            f"{how.protocol} on {how.split}{', several labels a video' if how.several else ''} "
            f"({count} run{'' if count == 1 else 's'})"
            for how, count in counts.items()
        )
        done = (
            "They are compared anyway, as across_protocols=true asks: a difference may come from that alone."
            if across_protocols
            else "Only what was evaluated as the baseline was is compared with it. To make runs alike, evaluate their "
            "checkpoints again with python -m vidtrain.evaluate; or say across_protocols=true."
        )
        yield f"The runs were evaluated in different ways: {listed}. {done}"
    if len(study.alike) == 1 and len(study.recipes) > 1:
        yield "Nothing else was evaluated as the baseline was, so there is no comparison."


def _on_videos(study: Study, comparisons: Comparisons) -> Iterator[str]:
    disjoint = {recipe.number for recipe in study.alike} - {study.baseline.number}
    disjoint -= {number for _, number in comparisons}
    if disjoint:
        yield f"No video is shared with the baseline by {_list_recipes(sorted(disjoint))}."
    if study.metric != study.tested:
        yield (
            f"Intervals are of {study.tested}: predictions.csv does not hold what {study.metric} is made of."
        )
    for (_, number), pair in comparisons.items():
        if any(pair.unshared) or pair.relabeled:
            read = pair.shared + pair.relabeled + max(pair.unshared)
            also = f"; one run read up to {read}" if any(pair.unshared) else ""
            also += f"; {pair.relabeled} more are labeled differently and left out" if pair.relabeled else ""
            yield (
                f"Recipe {number} is compared on the {pair.shared} videos that all runs of it and of the baseline "
                f"read{also}."
            )
    if any(pair.below_folders for pair in comparisons.values()):
        yield "Videos were matched by their paths below each run's folder of videos, as those folders differ."


def _on_data(runs: Sequence[Run]) -> Iterator[str]:
    """What the splits of the runs held when they were started, as their folders say."""
    from vidtrain.runs.data import difference

    for split, doing in (("train", "trained"), ("val", "selected"), ("test", "evaluated")):
        by_digest: dict[str, list[Run]] = {}
        for run in runs:
            if split in run.digests:
                by_digest.setdefault(run.digests[split], []).append(run)
        first, *others = list(by_digest.values()) or [[]]
        for other in others[:LISTED]:
            named = ", ".join(str(run.folder) for run in other[:LISTED])
            what = difference(first[0].folder, other[0].folder, split)
            yield (
                f"The runs were not {doing} on the same data: {named} not on those of {first[0].folder}"
                f"{f' ({what})' if what else ''}."
            )
    changed = [str(run.folder) for run in runs if run.data_changed]
    if changed:
        listed = ", ".join(changed[:LISTED])
        yield f"Went on with other data in mid-run (data_changes.jsonl in their folders): {listed}."


def _on_seeds(study: Study, comparisons: Comparisons, repeats: Sequence[str]) -> Iterator[str]:
    repeated = ", ".join(repeats)
    if len(study.recipes) == 1:
        say = " To compare its runs with each other, say repeats=[]." if repeats else ""
        yield f"All runs are one recipe{f', repeated over {repeated}' if repeats else ''}.{say}"
    once = [recipe.number for recipe in study.alike if len(recipe.runs) == 1]
    if once and comparisons:
        yield (
            f"Run just once: {_list_recipes(once)}. Their intervals tell what other videos would change, and not what "
            "another seed would."
        )
    twice = [
        recipe.number
        for recipe in study.recipes
        if len({str(_repeat_of(run, repeats)) for run in study.runs_of(recipe)}) < len(recipe.runs)
    ]
    if twice:
        yield (
            f"Several runs have the same {repeated or 'settings'}, and count as if they were independent: "
            f"{_list_recipes(twice)}."
        )


def _on_runs(runs: Sequence[Run]) -> Iterator[str]:
    commits = sorted({str(run.commit) for run in runs})
    if len(commits) > 1:
        yield f"The runs were made by different code: {', '.join(commits)}."
    selected = sorted({run.split for run in runs if run.split.startswith("val")})
    if selected:
        yield f"Numbers on {', '.join(selected)} selected the checkpoints too, so they are too good."
    incomplete = [run for run in runs if len(set(run.coverage.split("/"))) > 1]
    if incomplete:
        listed = ", ".join(f"{run.folder} {run.coverage}" for run in incomplete[:LISTED])
        yield f"Not every video could be read: {listed}{' and others' if len(incomplete) > LISTED else ''}."


def _list_recipes(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:LISTED]))
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"recipe{'' if len(numbers) == 1 else 's'} {listed}{more}"
