"""Compares all runs and returns one summary, as plain data for the tables, the charts and the page."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean, stdev
from typing import Any

from vidtrain.comparison.paired import Comparison, compare, compare_over_seeds
from vidtrain.comparison.recipes import (
    Recipe,
    Study,
    differing,
    ignored_keys,
    importance,
    labels,
    recipe_of,
    same_seeds,
    short_names,
    study_of,
)
from vidtrain.comparison.runs import Run
from vidtrain.config.schemas import CompareConfig
from vidtrain.errors import pluralize
from vidtrain.evaluation.metrics import CLOSING_DIRECTIONS, EVALUATIONS
from vidtrain.evaluation.resampling import FROM_LOGITS
from vidtrain.files.escaping import shown_some
from vidtrain.training.run import Console

SHOWN_FLIPS = 200  # at most this many videos whose prediction changed are in the summary
FEWEST_TRIALS = 3  # this many recipes or more are treated as a sweep
LISTED = 8  # at most this many runs or recipes are named in a note

Plain = dict[str, Any]
Comparisons = Mapping[int, Comparison]  # comparisons with the baseline, by the number of the other recipe
ChangedVideo = tuple[int, int, Plain]  # (number of the baseline, number of the other recipe, video)


def compare_runs(
    runs: Sequence[Run], settings: CompareConfig, is_sweep: bool, console: Console
) -> tuple[Plain, list[ChangedVideo]]:
    """Groups runs into recipes and compares every recipe with the baseline, on the videos that they share.

    Returns the summary, and all videos whose results differ, a list that is too long for the summary. `is_sweep` says
    whether the runs are the trials of one sweep. Raises `UserError` for a metric that not all runs report, and for a
    baseline that is none of the runs.
    """
    study = study_of(runs, settings)
    others = [recipe for recipe in study.comparable if recipe is not study.baseline]
    comparisons: dict[int, Comparison] = {}
    with console.phase("comparing", len(others)):
        for done, other in enumerate(others, start=1):
            pair = _compare_with_baseline(study, other)
            if pair is not None:
                changed = [video for video in pair.videos if video.baseline != video.other]
                comparisons[other.number] = replace(pair, videos=changed)
            console.advance(done, {"recipe": other.number})
    rows = [
        (study.baseline.number, number, {**asdict(video), "flipped": int(video.flipped)})
        for number, pair in comparisons.items()
        for video in pair.videos
    ]
    return _summary(study, comparisons, is_sweep), rows


def _compare_with_baseline(study: Study, other: Recipe) -> Comparison | None:
    """Without predictions, by the values of the metric; None where these, or shared videos, are missing."""
    settings, sides = study.settings, [study.runs_of(study.baseline), study.runs_of(other)]
    draws, confidence, seed = study.draws, settings.confidence, settings.seed
    if not study.of_pretraining:
        of_baseline, of_other = ([run.predictions for run in side if run.predictions] for side in sides)
        same_seed = same_seeds(study, other)
        return compare(of_baseline, of_other, same_seed, study.tested, draws, confidence, seed)
    values = [[run.metrics[study.metric] for run in side] for side in sides]
    first, second = ([value for value in side if value is not None] for side in values)
    known = [first, second] == values
    return compare_over_seeds(first, second, study.metric, draws, confidence, seed) if known else None


# --- the summary, as plain data ---------------------------------------------------------------------------


def _summary(study: Study, comparisons: Comparisons, of_a_sweep: bool) -> Plain:
    settings, baseline, metric = study.settings, study.baseline, study.metric
    compared = [recipe for recipe in study.recipes if recipe is baseline or recipe.number in comparisons]
    compared_numbers = {recipe.number for recipe in compared}
    known = [run for recipe in compared for run in recipe.runs if study.runs[run].metrics[metric] is not None]
    is_sweep = len(compared) >= (2 if of_a_sweep else FEWEST_TRIALS)
    names, recipe_labels = _names(study.runs), labels(study.recipes, compared_numbers)
    return {
        "metric": metric,
        "tested": study.tested,
        "higher_is_better": CLOSING_DIRECTIONS[metric] == "max",
        "tested_higher_is_better": CLOSING_DIRECTIONS[study.tested] == "max",
        "pretraining": study.of_pretraining,
        "confidence": settings.confidence,
        "draws": study.draws,
        "seed": settings.seed,
        "repeats": settings.repeats,
        "baseline": baseline.number,
        "keys": short_names(list(study.keys)),
        "recipes": [
            {
                **_recipe(study, recipe, recipe_labels[recipe.number], names),
                "compared": recipe.number in compared_numbers,
            }
            for recipe in study.recipes
        ],
        "runs": [_run(study, place, name) for place, name in enumerate(names)],
        "settings": differing([study.runs_of(recipe)[0].settings for recipe in study.recipes], ignored_keys(settings)),
        "comparisons": [_comparison(pair, baseline.number, number) for number, pair in comparisons.items()],
        "importance": _importance(study, known) if is_sweep else [],
        "is_sweep": is_sweep and bool(study.keys) and len(known) > 1,
        "chosen": _chosen(study, compared) if is_sweep else None,
        "notes": list(_notes(study, comparisons)),
    }


def _importance(study: Study, known: Sequence[int]) -> list[Plain]:
    """The importance of each swept or repeated setting for the metric, over the `known` runs, which have it."""
    values = [value for run in known if (value := study.runs[run].metrics[study.metric]) is not None]
    repeated = [study.repeat_of(study.runs[run]) for run in known]
    rows = {key: [row[run] for run in known] for key, row in study.keys.items()}
    rows |= {key: [repeat[key] for repeat in repeated] for key in study.settings.repeats}
    varied = {key: row for key, row in rows.items() if len(set(map(str, row))) > 1}
    return [asdict(row) for row in importance(values, varied)]


def _chosen(study: Study, compared: Sequence[Recipe]) -> Plain | None:
    """The recipe with the best mean over runs on val, by which a recipe should be chosen; None if the runs monitored
    different metrics, or no metric, as their last weights count."""
    monitors = {run.monitor for recipe in compared for run in study.runs_of(recipe)}
    if len(monitors) != 1 or monitors == {EVALUATIONS}:
        return None
    (monitor,) = monitors
    means = {recipe.number: spread([run.best for run in study.runs_of(recipe)])[0] for recipe in compared}
    number = (max if CLOSING_DIRECTIONS[monitor] == "max" else min)(means, key=lambda number: means[number])
    return {"recipe": number, "monitor": monitor, "mean": means[number]}


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation of runs; for a single run the deviation is None."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders of runs, relative to their common parent."""
    folders = [os.path.abspath(run.folder) for run in runs]
    common = os.path.commonpath([os.path.dirname(folder) for folder in folders])
    return [os.path.relpath(folder, common) for folder in folders]


def _recipe(study: Study, recipe: Recipe, label: str, names: Sequence[str]) -> Plain:
    runs = study.runs_of(recipe)
    first = runs[0]
    averages: dict[str, tuple[float | None, float | None]] = {}
    for name in first.metrics:
        known = [value for run in runs if (value := run.metrics.get(name)) is not None]
        averages[name] = spread(known) if known else (None, None)
    mean, deviation = averages[study.metric]
    return {
        "number": recipe.number,
        "label": label or ("all runs" if len(runs) == len(study.runs) else names[recipe.runs[0]]),
        "settings": recipe.settings,
        "runs": [names[place] for place in recipe.runs],
        "n": len(runs),
        "split": first.split,
        "protocol": first.protocol,
        "values": [run.metrics[study.metric] for run in runs],
        "mean": mean,
        "deviation": deviation,
        "metrics": averages,
        "monitor": first.monitor,
        "best": spread([run.best for run in runs if run.monitor == first.monitor]),
    }


RUN_KEYS = (
    "monitor", "best", "best_step", "steps", "minutes", "split", "protocol", "coverage", "commit", "metrics",
)  # fmt: skip


def _run(study: Study, place: int, name: str) -> Plain:
    run = study.runs[place]
    final = run.validated(run.monitor)
    return {
        "name": name,
        "folder": str(run.folder),
        "recipe": recipe_of(study.recipes, place).number,
        "settings": {key: row[place] for key, row in study.keys.items()},
        "repeats": study.repeat_of(run),
        **{key: getattr(run, key) for key in RUN_KEYS},
        "final": final[-1][1] if final else None,
        "best_baseline": run.baselines[0] if run.baselines else None,
        "curve": run.validated(study.metric),
    }


def _comparison(pair: Comparison, baseline: int, other: int) -> Plain:
    flipped = [video for video in pair.videos if video.flipped]
    plain = asdict(replace(pair, videos=[]))
    del plain["videos"]
    return {
        **plain,
        "baseline": baseline,
        "other": other,
        "widest": pair.widest,
        "verdict": pair.verdict,
        "gained": sum(video.other > 0.5 for video in flipped),
        "lost": sum(video.baseline > 0.5 for video in flipped),
        "flips": [asdict(video) for video in flipped[:SHOWN_FLIPS]],
    }


# --- notes: what limits the conclusions -------------------------------------------------------------------


def _notes(study: Study, comparisons: Comparisons) -> Iterator[str]:
    yield from _on_protocols(study)
    if study.of_pretraining:
        yield from _on_objectives(study)
    yield from _on_videos(study, comparisons)
    yield from _on_data(study.runs)
    yield from _on_baselines(study.runs)
    yield from _on_seeds(study, comparisons)
    if len(comparisons) > 1:
        confidence = study.settings.confidence
        yield (
            f"{len(comparisons)} recipes are compared with the baseline: were all equally good, about "
            f"{len(comparisons) * (1 - confidence):.2g} of their intervals at {confidence:.0%} would miss 0 by chance. "
            "Confirm a winner on new seeds."
        )
    yield from _on_runs(study.runs)


def _on_protocols(study: Study) -> Iterator[str]:
    counts = Counter(run.kind for run in study.runs)
    if len(counts) > 1:
        listed = "; ".join(
            f"{kind.protocol} on {kind.split}{', several labels a video' if kind.several else ''}"
            f"{f', probed with {kind.probed}' if kind.probed else ''} "
            f"({pluralize(count, 'run')})"
            for kind, count in counts.items()
        )
        consequence = (
            "They are compared anyway, because of across_protocols=true: a difference may come from that alone."
            if study.settings.across_protocols
            else "Only runs that were evaluated like the baseline are compared with it. To compare the others, "
            "evaluate their checkpoints again with python -m vidtrain.evaluate, or set across_protocols=true."
        )
        yield f"The runs were evaluated in different ways: {listed}. {consequence}"
    if len(study.comparable) == 1 and len(study.recipes) > 1:
        yield "No other recipe was evaluated like the baseline, so there is no comparison."


def _on_objectives(study: Study) -> Iterator[str]:
    if study.metric == "loss" and any(key.partition(".")[0] in ("objective", "clip") for key in study.keys):
        yield (
            "The loss is that of each run's own objective and clips, which differ. Compare by what probes know: name a "
            "probe.dataset when pretraining."
        )
    if study.metric in ("effective_rank", "spread"):
        yield f"The {study.metric} tells whether features collapse, not what they are good for."
    yield "Intervals are over seeds alone, and not over the choice of videos."


def _on_videos(study: Study, comparisons: Comparisons) -> Iterator[str]:
    numbers = [recipe.number for recipe in study.comparable if recipe is not study.baseline]
    disjoint = [number for number in numbers if number not in comparisons]
    if disjoint and not study.of_pretraining:
        yield f"No video is shared with the baseline by {_list_recipes(disjoint)}."
    if study.metric != study.tested:
        reason = (
            f"{study.metric} needs logits.npz beside predictions.csv, which some runs lack: evaluate their checkpoints "
            "again"
            if study.metric in FROM_LOGITS
            else f"{study.metric} cannot be computed from their predictions"
        )
        yield f"Intervals are of {study.tested}, as {reason}."
    for number, pair in comparisons.items():
        if any(pair.unshared) or pair.relabeled:
            most_read = pair.shared + pair.relabeled + max(pair.unshared)
            also = f"; one run read up to {most_read}" if any(pair.unshared) else ""
            also += f"; {pair.relabeled} more are labeled differently and left out" if pair.relabeled else ""
            yield (
                f"Recipe {number} is compared on the {pair.shared} videos that all runs of it and of the baseline "
                f"read{also}."
            )
    if any(pair.units == 1 for pair in comparisons.values()):
        yield (
            "The shared videos are one group, such as one person: what others would give is not known, so there is no "
            "interval."
        )
    if any(pair.below_folders for pair in comparisons.values()):
        yield "Videos were matched by their paths below each run's folder of videos, as those folders differ."


def _on_data(runs: Sequence[Run]) -> Iterator[str]:
    """Notes on differences between the runs' splits, as recorded in their folders at the start."""
    from vidtrain.runs.data import difference

    for split, use in (("train", "trained"), ("val", "selected"), ("test", "evaluated")):
        by_digest: dict[str, list[Run]] = {}
        for run in runs:
            if split in run.digests:
                by_digest.setdefault(run.digests[split], []).append(run)
        first, *others = list(by_digest.values()) or [[]]
        for other in others[:LISTED]:
            difference_text = difference(first[0].folder, other[0].folder, split)
            folders = shown_some([run.folder for run in other], LISTED)
            yield (
                f"The runs were not {use} on the same data: {folders} not on those of {first[0].folder}"
                f"{f' ({difference_text})' if difference_text else ''}."
            )
    changed = [run.folder for run in runs if run.data_changed]
    if changed:
        folders = shown_some(changed, LISTED)
        yield f"The data changed in the middle of these runs (data_changes.jsonl in their folders): {folders}."


def _on_baselines(runs: Sequence[Run]) -> Iterator[str]:
    """Notes on runs that are not better than the baselines, which learn nothing from video."""
    with_best = [(run.folder, run.baselines[0]) for run in runs if run.baselines]
    not_better = [
        f"{folder} ({best['run']:.4f}; {best['name']} {best['baseline']:.4f})"
        for folder, best in with_best
        if best["low"] is not None and best["low"] <= 0  # None: the videos are one group
    ]
    if not_better:
        yield f"These runs are not better than the best baseline by more than chance: {shown_some(not_better, LISTED)}."
    without = [run.folder for run in runs if not run.baselines]
    if with_best and without:
        yield (
            f"No baselines are stored for {shown_some(without, LISTED)}: they were measured after these runs, or on "
            "another split. python -m vidtrain.compare RUN puts those that are known now on the page of a run."
        )


def _on_seeds(study: Study, comparisons: Comparisons) -> Iterator[str]:
    repeated = ", ".join(study.settings.repeats)
    if len(study.recipes) == 1:
        over = f", repeated over {repeated}" if repeated else ""
        advice = " To compare its runs with each other, set repeats=[]." if repeated else ""
        yield f"All runs are one recipe{over}.{advice}"
    once = [recipe.number for recipe in study.comparable if len(recipe.runs) == 1]
    if once and comparisons:
        covered = (
            "What another seed would give is not known, so their differences have no interval."
            if all(pair.interval is None for pair in comparisons.values())
            else "Their intervals include the choice of videos, but not that of the seed."
        )
        yield f"Run only once: {_list_recipes(once)}. {covered}"
    twice = [
        recipe.number
        for recipe in study.recipes
        if len({str(study.repeat_of(run)) for run in study.runs_of(recipe)}) < len(recipe.runs)
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
    selected = sorted({run.split for run in runs if run.split.startswith("val") and run.monitor != EVALUATIONS})
    if selected:
        yield f"Numbers on {', '.join(selected)} are too good, as the checkpoints were selected by them."
    incomplete = [f"{run.folder} {run.coverage}" for run in runs if len(set(run.coverage.split("/"))) > 1]
    if incomplete:
        yield f"Not every video could be read: {shown_some(incomplete, LISTED)}."


def _list_recipes(numbers: Sequence[int]) -> str:
    return f"recipe{'' if len(numbers) == 1 else 's'} {shown_some(numbers, LISTED)}"
