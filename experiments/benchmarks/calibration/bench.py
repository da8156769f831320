"""Times the calibration of a large val split from its logits, and measures how well intervals of its errors cover.

python experiments/benchmarks/calibration/bench.py [--videos 20000] [--classes 400] [--threads 2] [--coverage]
"""

import argparse
import time

import numpy as np
import torch

from vidtrain.evaluation.calibration import (
    Outcomes,
    calibration_error,
    equal_width,
    fit,
    fit_vector,
    outcomes,
    reliability,
)
from vidtrain.evaluation.metrics import percentile_interval
from vidtrain.evaluator.calibration import least_probabilities, risk_coverage, thresholds


def made_up(videos: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of an overconfident network that is right on about 3 of 4 videos."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (videos,), generator=rng)
    logits = torch.randn(videos, classes, generator=rng)
    logits[torch.arange(videos), labels] += 3.7
    return 3 * logits, labels


def time_parts(videos: int, classes: int) -> None:
    logits, labels = made_up(videos, classes)
    total = [0.0, 0.0]

    def timed(name, make):
        wall, cpu = time.perf_counter(), time.process_time()
        value = make()
        spent = time.perf_counter() - wall, time.process_time() - cpu
        total[:] = (before + now for before, now in zip(total, spent, strict=True))
        print(f"{name:45} {spent[0]:6.2f} s, {spent[1]:6.2f} s of CPU time")
        return value

    scaling, scaled = timed("temperature, and of five folds", lambda: fit("temperature", logits, labels, False, None))
    costs = timed("costs before and after", lambda: [outcomes(z, labels, False) for z in (logits, scaled)])
    before, after = timed("1,000 bootstrap draws of both", lambda: reliability(costs, None))
    probabilities = timed("probabilities", lambda: scaled.softmax(dim=1).numpy())
    true = labels.numpy()
    timed("thresholds of every class", lambda: thresholds(probabilities, true, "precision", 0.9))
    timed("risk and coverage", lambda: risk_coverage(costs[1].confidence, costs[1].right))
    timed(
        "sets, of all classes and of each",
        lambda: [least_probabilities(probabilities, true, 0.9, own) for own in (0, 1)],
    )
    print(f"{'together':45} {total[0]:6.2f} s, {total[1]:6.2f} s of CPU time")
    print(f"{scaling}; ece {before['ece']['value']:.4f} before, {after['ece']['value']:.4f} after")
    timed("vector scaling alone", lambda: fit_vector(logits, labels, False, scaling))


def interval_coverage(trials: int = 200) -> None:
    """How often intervals contain the calibration error of a source that is overconfident by some amount."""
    rng = np.random.default_rng(0)

    def draw(n: int, too_sure: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        confidence = rng.beta(4, 1.5, n)
        true = np.clip(confidence - too_sure, 0, 1)
        return confidence, (rng.random(n) < true).astype(float), true

    print("too sure by, videos: plain percentiles hold the error, ours do")
    for too_sure in (0.0, 0.03, 0.1):
        confidence, _, true = draw(2_000_000, too_sure)
        error = calibration_error(confidence, true, equal_width(confidence))
        for n in (100, 400, 2000):
            held = np.zeros(2)
            for _ in range(trials):
                confidence, right, _ = draw(n, too_sure)
                own = reliability([Outcomes(right, right, confidence, right)], None)[0]["ece"]
                bins, gaps = equal_width(confidence), np.zeros((n, 16))
                gaps[np.arange(n), bins] = confidence - right
                draws = np.abs(rng.multinomial(n, np.full(n, 1 / n), size=300) @ gaps).sum(axis=1) / n
                low, high = percentile_interval(draws, 0.95)
                held += [low <= error <= high, own["low"] <= error <= own["high"]]
            print(f"{too_sure:4.2f} {n:5d}: {held[0] / trials:.2f} {held[1] / trials:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--coverage", action="store_true", help="of intervals, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    time_parts(options.videos, options.classes)
    if options.coverage:
        interval_coverage()
