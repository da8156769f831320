"""Markdown from the results."""

import math
import statistics
from collections.abc import Callable, Sequence

from peers import FLOOR, OURS

FAMILIES = ("torchcodec", "decord", "OpenCV", "PyAV")
Results = dict[str, dict]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def videos(results: Results) -> str:
    rows = [
        [
            name,
            f"{facts['width']}x{facts['height']}",
            str(facts["frames"]),
            str(facts["keyframes"]),
            f"{facts['b_share']:.0%}",
        ]
        for name, facts in results["videos"].items()
    ]
    return table(["video", "size", "frames", "keyframes", "B-frames"], rows)


def checks(results: Results) -> str:
    """Which forms fail or give wrong frames; all others gave every frame right."""
    rows = []
    for video, readers in results["checks"].items():
        for reader, works in readers.items():
            faults = [f"{work}: {_fault(found)}" for work, found in works.items() if _fault(found)]
            if faults:
                rows.append([video, reader, "; ".join(faults)])
    return table(["video", "reader", "what"], rows) if rows else "Every reader gave every frame right.\n"


def _fault(found: list[int] | str) -> str:
    """In words; empty where all frames were right."""
    if isinstance(found, str):
        return found
    return f"wrong {found[0]}/{found[1]}" if found[0] else ""


class Work:
    """The figures of one work: `times[video][reader]` are {"wall": [...], "cpu": [...]}, None where it failed."""

    def __init__(self, results: Results, work: str):
        self.times = results["times"].get(work, {})
        self.faults = {
            video: {reader: _fault(works[work]) for reader, works in readers.items() if work in works}
            for video, readers in results["checks"].items()
        }
        for video, readers in self.times.items():
            for reader, clocks in readers.items():
                if failed := clocks["wall"].count(None):
                    fault = f"failed {failed} of {len(clocks['wall'])}"
                    self.faults[video][reader] = self.faults[video][reader] or fault

    def ratios(self, video: str, reader: str, over: str = OURS, clock: str = "wall") -> list[float]:
        one, other = self.times[video].get(reader), self.times[video].get(over)
        if one is None or other is None:
            return []
        pairs = zip(one[clock], other[clock], strict=True)
        return [a / b for a, b in pairs if a is not None and b is not None]

    def best(self, video: str, family: str, clock: str = "wall") -> str | None:
        """The form of a family with the lowest median ratio among those that are right."""
        forms = [
            reader
            for reader in self.times[video]
            if reader.startswith(family) and not self.faults[video][reader] and self.ratios(video, reader)
        ]
        return min(forms, key=lambda each: statistics.median(self.ratios(video, each, clock=clock)), default=None)

    def cell(self, video: str, family: str) -> str:
        form = self.best(video, family)
        if form is None:
            faults = [fault for each, fault in self.faults[video].items() if each.startswith(family) and fault]
            return min(faults, key=len, default="-")[:40]
        variant = form.removeprefix(family).strip(", ")
        return spread(self.ratios(video, form)) + (f" {variant}" if family == "torchcodec" else "")

    def milliseconds(self, video: str, reader: str) -> str:
        found = [each for each in self.times[video].get(reader, {"wall": []})["wall"] if each is not None]
        fault = self.faults[video].get(reader, "")
        value = f"{statistics.median(found) * 1e3:.1f}" if found else "-"
        return f"({value}) {fault[:20]}" if fault else value

    def summary(self) -> list[str]:
        def cheapest(video: str, clock: str) -> float | None:
            forms = [form for family in FAMILIES if (form := self.best(video, family, clock))]
            return min((statistics.median(self.ratios(video, form, clock=clock)) for form in forms), default=None)

        def torchcodec(video: str, clock: str) -> float | None:
            form = self.best(video, "torchcodec", clock)
            return statistics.median(self.ratios(video, form, clock=clock)) if form else None

        def floor(video: str, clock: str) -> float | None:
            found = self.ratios(video, OURS, FLOOR, clock)
            return statistics.median(found) if found else None

        lines = []
        kinds = {"torchcodec's best form": torchcodec, "the cheapest peer": cheapest}
        for words, function in kinds.items():
            lines.append(f"- {words} / ours: {self._mean(function)}")
        return [*lines, f"- ours / floor: {self._mean(floor)}"]

    def _mean(self, function: Callable[[str, str], float | None]) -> str:
        found = {}
        for clock in ("wall", "cpu"):
            values = [value for video in self.times if (value := function(video, clock)) is not None]
            if not values:
                return "-"
            found[clock] = (
                math.exp(statistics.mean(map(math.log, values))),
                min(values),
                max(values),
                len(values),
            )
        mean, low, high, count = found["wall"]
        cpu = found["cpu"][0]
        return f"geometric mean {mean:.2f} over {count} videos, {low:.2f} to {high:.2f}; by processor time {cpu:.2f}"


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def work_tables(results: Results, work: str) -> str:
    figures = Work(results, work)
    heads = ["video", "rounds", "ours, ms", "floor, ms", "ours / floor"]
    heads += [f"{family} / ours" for family in FAMILIES] + ["index from disk / ours", "no index / ours"]
    rows = []
    for video in figures.times:
        ours = figures.ratios(video, OURS, OURS)
        row = [video, str(len(ours)), figures.milliseconds(video, OURS), figures.milliseconds(video, FLOOR)]
        row.append(spread(figures.ratios(video, OURS, FLOOR)))
        row += [figures.cell(video, family) for family in FAMILIES]
        row += [spread(figures.ratios(video, f"vidtrain, {kind}")) for kind in ("index from disk", "no index")]
        rows.append(row)
    forms = [each for each in next(iter(results["checks"].values())) if each not in (OURS, FLOOR)]
    every = [[video, *(figures.milliseconds(video, form) for form in forms)] for video in figures.times]
    return "\n".join(
        [
            table(heads, rows),
            *figures.summary(),
            "\nMedian milliseconds of every form:\n",
            table(["video", *forms], every),
        ]
    )


def loader(results: Results) -> str:
    """Clips a second, and ours over each reader's, round by round."""
    rows = []
    for video, readers in results["loader"].items():
        for reader, found in readers.items():
            words = [each for each in found if isinstance(each, str)]
            pairs = [(a, b) for a, b in zip(readers[OURS], found, strict=False) if not isinstance(b, str)]
            if words or not pairs:
                rows.append([video, reader, words[0] if words else "-", "-"])
                continue
            rate = statistics.median(b for _, b in pairs)
            rows.append([video, reader, f"{rate:.1f}", spread([a / b for a, b in pairs])])
    return table(["video", "reader", "clips/s", "ours / it"], rows)


def memory(results: Results) -> str:
    every = list(results["memory"])
    names = list(results["memory"][every[0]]) if every else []
    rows = [[name, *(_number(results["memory"][video].get(name, "-")) for video in every)] for name in names]
    return table(["reader", *every], rows)


def _number(found: float | str) -> str:
    return found[:60] if isinstance(found, str) else f"{found:.0f}"


def pixels(results: Results) -> str:
    rows = []
    for video, kinds in results["pixels"].items():
        for kind, readers in kinds.items():
            for reader, scores in readers.items():
                keys = ("center bicubic", "center bilinear", "left bicubic", "left bilinear", "bias")
                rows.append([video, kind, reader, *(f"{scores[key]:.1f}" for key in keys)])
    heads = ["video", "box", "reader", "PSNR, center, bicubic", "center, bilinear", "left, bicubic"]
    return table([*heads, "left, bilinear", "mean shift"], rows)
