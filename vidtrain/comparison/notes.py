"""What a reader must know before believing a comparison, in words."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidtrain.comparison.paired import Comparison
from vidtrain.comparison.recipes import Recipe
from vidtrain.comparison.runs import Run

LISTED = 8  # runs or recipes in a note


@dataclass(frozen=True)
class Situation:
    """What was compared. `how` each recipe was evaluated is (split, protocol, several labels); `alike` are the recipes
    that may be compared, of which those numbered in `disjoint` share no video with the baseline."""

    runs: Sequence[Run]
    recipes: Sequence[Recipe]
    how: Sequence[tuple[str, str, bool]]
    alike: Sequence[Recipe]
    disjoint: Sequence[int]
    comparisons: Mapping[tuple[int, int], Comparison]
    metric: str
    tested: str


def notes(of: Situation, repeats: Sequence[str], confidence: float, across_protocols: bool) -> list[str]:
    return [
        *_on_protocols(of, across_protocols),
        *_on_videos(of),
        *_on_data(of),
        *_on_seeds(of, repeats),
        *_on_chance(of, confidence),
        *_on_runs(of),
    ]


def _on_protocols(of: Situation, across_protocols: bool) -> Iterator[str]:
    counts: Counter[tuple[str, str, bool]] = Counter()
    for recipe, how in zip(of.recipes, of.how, strict=True):
        counts[how] += len(recipe.runs)
    if len(counts) > 1:
        listed = "; ".join(
            f"{protocol} on {split}{', several labels a video' if several else ''} ({_count(count, 'run')})"
            for (split, protocol, several), count in counts.items()
        )
        done = (
            "They are compared all the same, as across_protocols=true asks: a difference may come from that alone."
            if across_protocols
            else "Only what was evaluated as the baseline was is compared with it. To make runs alike, evaluate their "
            "checkpoints again with python -m vidtrain.evaluate; or say across_protocols=true."
        )
        yield f"The runs were evaluated in different ways: {listed}. {done}"
    if len(of.alike) == 1 and len(of.recipes) > 1:
        yield "Nothing else was evaluated as the baseline was, so there is no comparison."


def _on_videos(of: Situation) -> Iterator[str]:
    if of.disjoint:
        yield f"No video is shared with the baseline by {_recipes(of.disjoint)}."
    if of.metric != of.tested:
        yield f"Intervals are of {of.tested}: predictions.csv does not hold what {of.metric} is made of."
    for (_, number), pair in of.comparisons.items():
        if not any(pair.unshared) and not pair.relabeled:
            continue
        read = pair.shared + pair.relabeled + max(pair.unshared)
        words = f"Recipe {number} is compared on the {pair.shared} videos that all runs of it and of the baseline read"
        words += f"; one run read up to {read}" if any(pair.unshared) else ""
        words += f"; {pair.relabeled} more are labeled differently and left out" if pair.relabeled else ""
        yield f"{words}."
    if any(pair.below_folders for pair in of.comparisons.values()):
        yield "Videos were matched by their paths below each run's folder of videos, as those folders differ."


def _on_data(of: Situation) -> Iterator[str]:
    """What the splits of the runs held when they were started, as their folders say."""
    from vidtrain.runs.data import difference

    for split, doing in (("train", "trained"), ("val", "selected"), ("test", "evaluated")):
        alike: dict[str, list[Run]] = {}
        for run in of.runs:
            if split in run.digests:
                alike.setdefault(run.digests[split], []).append(run)
        (first, *_), *others = alike.values() or [[None]]
        for runs in others[:LISTED]:
            named = ", ".join(str(run.folder) for run in runs[:LISTED])
            told = difference(first.folder, runs[0].folder, split)
            yield f"The runs were not {doing} on the same data: {named} not on those of {first.folder}" + (
                f" ({told})." if told else "."
            )
    changed = [str(run.folder) for run in of.runs if run.data_changed]
    if changed:
        listed = ", ".join(changed[:LISTED])
        yield f"Went on with other data in mid-run (data_changes.jsonl in their folders): {listed}."


def _on_seeds(of: Situation, repeats: Sequence[str]) -> Iterator[str]:
    repeated = ", ".join(repeats)
    if len(of.recipes) == 1:
        say = " To hold its runs against each other, say repeats=[]." if repeats else ""
        yield f"All runs are one recipe{f', repeated over {repeated}' if repeats else ''}.{say}"
    once = [each.number for each in of.alike if len(each.runs) == 1]
    if once and of.comparisons:
        yield (
            f"Run just once: {_recipes(once)}. Their intervals tell what other videos would change, and not what "
            "another seed would."
        )
    twice = [
        each.number
        for each in of.recipes
        if len({repeat_of(of.runs[run], repeats) for run in each.runs}) < len(each.runs)
    ]
    if twice:
        yield (
            f"Several runs have the same {repeated or 'settings'}, and count as if they were independent: "
            f"{_recipes(twice)}."
        )


def _on_chance(of: Situation, confidence: float) -> Iterator[str]:
    if len(of.comparisons) > 1:
        expected = len(of.comparisons) * (1 - confidence)
        yield (
            f"{len(of.comparisons)} recipes are held against the baseline: were all equally good, about {expected:.2g} "
            f"of their intervals at {confidence:.0%} would miss 0 by chance. Confirm a winner on new seeds."
        )


def _on_runs(of: Situation) -> Iterator[str]:
    commits = sorted({str(run.commit) for run in of.runs})
    if len(commits) > 1:
        yield f"The runs were made by different code: {', '.join(commits)}."
    selected = sorted({run.split for run in of.runs if run.split.startswith("val")})
    if selected:
        yield f"Numbers on {', '.join(selected)} selected the checkpoints too, so they are too good."
    incomplete = [run for run in of.runs if len(set(run.coverage.split("/"))) > 1]
    if incomplete:
        listed = ", ".join(f"{run.folder} {run.coverage}" for run in incomplete[:LISTED])
        yield f"Not every video could be read: {listed}{' and others' if len(incomplete) > LISTED else ''}."


def repeat_of(run: Run, repeats: Sequence[str]) -> str:
    """`seed=0`"""
    return ", ".join(f"{key}={setting(run, key)}" for key in repeats)


def setting(run: Run, key: str) -> Any:
    return run.settings[key] if key in run.settings else None


def _recipes(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:LISTED]))
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"{'recipe' if len(numbers) == 1 else 'recipes'} {listed}{more}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
