"""Classification metrics, for one label a video and for several, and bootstrap intervals of any number over videos.

The metrics for one label are computed from counts by class, so their memory grows linearly with the classes:
torchmetrics counts in a matrix of classes by classes, 3.5 GB for each metric of 21,000 classes. The metrics for several
labels use sigmoids. torchmetrics is imported inside functions, as the import takes seconds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# What `trainer.monitor` may name if a video has one label, and if it may have several
ONE_LABEL = ("loss", "top1", "top5", "balanced_accuracy", "precision_macro", "precision_weighted", "recall_macro",
             "recall_weighted", "f1_macro", "f1_weighted", "clip_loss", "clip_top1", "clip_top5")  # fmt: skip
SEVERAL_LABELS = ("loss", "map", "map_micro", "exact_match", "precision_macro", "precision_micro", "recall_macro",
                  "recall_micro", "f1_macro", "f1_micro", "clip_loss", "clip_map", "clip_map_micro")  # fmt: skip
# What pretraining measures; the last two only if a labeled dataset is chosen to probe the features
UNLABELED = ("loss", "effective_rank", "spread", "knn_top1", "linear_top1")
EVALUATIONS = "evaluations"  # number of evaluations so far; as the monitor, it selects the latest weights
NO_LABELS = (*UNLABELED, EVALUATIONS)
# Whether lower or higher values are better
DIRECTIONS = {name: "min" if name.endswith("loss") else "max" for name in (*ONE_LABEL, *SEVERAL_LABELS, *NO_LABELS)}

# The same with the calibration metrics, which only the closing evaluation reports
CLOSING_DIRECTIONS = DIRECTIONS | {"brier": "min", "ece": "min", "ece_mass": "min"}


def metric_names(num_classes: int, multi_label: bool) -> tuple[str, ...]:
    """The metrics of a dataset with `num_classes` classes."""
    if multi_label:
        return SEVERAL_LABELS
    # with five classes or fewer, top-5 is always right
    return tuple(name for name in ONE_LABEL if num_classes > 5 or not name.endswith("top5"))


CELLS = 1 << 24  # logits that are sorted, or taken in double precision, at a time
DRAWN_CELLS = 1 << 22  # bootstrap weights that are in memory at a time


def from_predictions(predictions: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Top-1, balanced accuracy, and precision, recall and F1 as macro and weighted averages; `predictions` and `labels`
    are [v]. Macro averages leave out classes that are neither present nor predicted. Balanced accuracy is the mean
    recall of the classes that are present."""
    return from_class_counts(class_counts(predictions, labels, num_classes))


def class_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """For each class the number of videos that are correctly predicted, that have the label, and that are predicted:
    int64 [3 k]."""
    columns = (labels[predictions == labels], labels, predictions)
    return torch.stack([torch.bincount(column, minlength=num_classes) for column in columns])


def from_class_counts(counts: Tensor) -> dict[str, float]:
    """The metrics of `from_predictions`, from the counts [3 k] of `class_counts`, which may be summed over batches."""
    hits, labeled, predicted = counts.double().cpu()
    seen, total = labeled + predicted > 0, labeled.sum()
    metrics = {"top1": (hits.sum() / total).item()}
    # 0 / 0 counts as 0
    scores = {name: score.nan_to_num() for name, score in _scores(hits, labeled, predicted).items()}
    for name, score in scores.items():
        metrics[f"{name}_macro"] = score[seen].mean().item()
        metrics[f"{name}_weighted"] = ((score * labeled).sum() / total).item()
    metrics["balanced_accuracy"] = scores["recall"][labeled > 0].mean().item()
    return metrics


def _scores(hits: Tensor, labeled: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Precision, recall and F1 of each class [k]; nan for 0 / 0."""
    return {"precision": hits / predicted, "recall": hits / labeled, "f1": 2 * hits / (labeled + predicted)}


def ranking(logits: Tensor) -> Tensor:
    """Classes [v k] by falling logit [v k]. Equal logits keep the order of classes. All metrics use this one rule, as
    otherwise top-1 could exceed top-5."""
    return logits.sort(dim=-1, descending=True, stable=True).indices


def from_logits(logits: Tensor, labels: Tensor, independent: bool = False) -> dict[str, float]:
    """Loss, top-1 and, above five classes, top-5; `logits` are [v k] and `labels` [v]. The loss is the cross-entropy
    or, if classes are judged independently, the mean binary cross-entropy over classes. It has no smoothing or class
    weights, so that runs with different training losses are comparable."""
    (v, k), loss = logits.shape, 0.0
    hits = {rank: 0 for rank in (1, 5) if rank < k}
    for rows in parts(v, k):
        part, truth = logits[rows].double(), labels[rows]
        if independent:
            answers = F.one_hot(truth, k).double()
            loss += F.binary_cross_entropy_with_logits(part, answers, reduction="sum").item() / k
        else:
            loss += F.cross_entropy(part, truth, reduction="sum").item()
        right = ranking(logits[rows])[:, :5] == truth[:, None]
        for rank in hits:
            hits[rank] += int(right[:, :rank].any(dim=1).sum())
    return {"loss": loss / v, **{f"top{rank}": count / v for rank, count in hits.items()}}


def parts(v: int, k: int, cells: int = CELLS) -> Iterator[slice]:
    """Slices of the rows of a table [v k], each with at most `cells` cells (and at least one row)."""
    step = max(1, cells // k)
    return (slice(start, start + step) for start in range(0, v, step))


def first_classes(logits: Tensor, count: int) -> Tensor:
    """The first `count` classes of `ranking`, or all if there are fewer: int64 [v count]."""
    chunks = [ranking(logits[rows])[:, :count].clone() for rows in parts(*logits.shape)]
    return torch.cat(chunks) if chunks else torch.empty(0, min(count, logits.shape[1]), dtype=torch.int64)


@dataclass(frozen=True)
class Confusion:
    """A sparse confusion matrix: how often (`counts`) each pair of `labels` and `predictions` occurs, all int64 [m],
    sorted by label. It has at most as many pairs as there are videos, where a dense matrix has k * k cells."""

    num_classes: int
    labels: Tensor
    predictions: Tensor
    counts: Tensor

    def by_class(self) -> Tensor:
        """The counts int64 [3 k] of `class_counts`."""
        right = self.labels == self.predictions
        counts = torch.zeros(3, self.num_classes, dtype=torch.int64)
        counts[0, self.labels[right]] = self.counts[right]
        counts[1].index_add_(0, self.labels, self.counts)
        counts[2].index_add_(0, self.predictions, self.counts)
        return counts

    def row(self, label: int) -> Tensor:
        """How often videos of a class were predicted as each class: int64 [k]."""
        first, last = torch.searchsorted(self.labels, torch.tensor([label, label + 1])).tolist()
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        counts[self.predictions[first:last]] = self.counts[first:last]
        return counts

    def tolist(self) -> list[list[int]]:
        """The dense matrix, a row for each label."""
        return [self.row(label).tolist() for label in range(self.num_classes)]


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Confusion:
    """Counts how often each label [v] occurs with each prediction [v]."""
    pairs, counts = torch.unique(labels * num_classes + predictions, return_counts=True)
    return Confusion(num_classes, pairs // num_classes, pairs % num_classes, counts)


def per_class(confusion: Confusion) -> list[dict[str, float | None]]:
    """For each class its support, precision, recall and F1; None for 0 / 0."""
    hits, labeled, predicted = confusion.by_class().double()
    return _rows(labeled, **_scores(hits, labeled, predicted))


def _rows(support: Tensor, **scores: Tensor) -> list[dict[str, float | None]]:
    by_class = zip(*(column.tolist() for column in scores.values()), strict=True)
    return [
        {"support": int(n)}
        | {name: None if math.isnan(value) else value for name, value in zip(scores, values, strict=True)}
        for n, values in zip(support.tolist(), by_class, strict=True)
    ]


# --- several labels a video ---------------------------------------------------------------------------------


def from_label_logits(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and mean average precision of `logits` [v k] and `labels` [v k] of 0 and 1.

    The loss is the mean binary cross-entropy over videos and classes (natural logarithm, no weights, no smoothing).
    `map` is the mean area under the precision-recall curve, over the classes that some video has. `map_micro` ranks all
    pairs of video and class together, and is nan if no video has a label.
    """
    from torchmetrics.functional.classification import binary_average_precision

    truth = labels.long()
    by_class = average_precision(logits, labels)
    present = by_class[~by_class.isnan()]
    micro = binary_average_precision(logits.double().sigmoid().flatten(), truth.flatten())
    return {
        "loss": F.binary_cross_entropy_with_logits(logits.double(), truth.double()).item(),
        "map": present.mean().item(),
        "map_micro": micro.item() if truth.any() else float("nan"),
    }


def average_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """The average precision of each class, float64 [k]; nan for a class that no video has. Equal logits are one point
    of the curve."""
    from torchmetrics.functional.classification import binary_average_precision

    # in double precision a sigmoid keeps the order of logits up to 36
    probabilities, truth = logits.double().sigmoid(), labels.long()
    by_label = torch.full((logits.shape[1],), float("nan"), dtype=torch.float64)
    for k in truth.any(dim=0).nonzero().flatten().tolist():
        by_label[k] = binary_average_precision(probabilities[:, k], truth[:, k])
    return by_label


def count_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts videos for each class by (has the label, is predicted to have it): int64 [k 2 2]. `logits` and `labels`
    are [v k]. A label is predicted if its logit is above 0, so its probability above 0.5."""
    has, predicted = labels.bool(), logits > 0
    cells = ((~has & ~predicted), (~has & predicted), (has & ~predicted), (has & predicted))
    return torch.stack([cell.sum(dim=0) for cell in cells], dim=-1).unflatten(-1, (2, 2))


def from_label_counts(counts: Tensor) -> dict[str, float]:
    """Precision, recall and F1 at a probability of 0.5, from the counts [k 2 2] of `count_labels`. Micro averages count
    all labels together. Macro averages are means over classes that are present or predicted. 0 / 0 counts as 0."""
    counts = counts.double().cpu()
    kept = counts[counts[:, 1, 1] + counts[:, 0, 1] + counts[:, 1, 0] > 0]
    metrics = {}
    for average, cells in (("micro", counts.sum(dim=0, keepdim=True)), ("macro", kept)):
        for name, value in _scores(*_by_label(cells)).items():
            metrics[f"{name}_{average}"] = value.nan_to_num().mean().item() if len(cells) else 0.0
    return metrics


def exact_match(logits: Tensor, labels: Tensor) -> float:
    """The share of videos whose predicted labels are exactly their labels."""
    return ((logits > 0) == labels.bool()).all(dim=1).double().mean().item()


def per_label(logits: Tensor, labels: Tensor) -> list[dict[str, float | None]]:
    """For each class its support, average precision, precision, recall and F1; None for 0 / 0."""
    counts = count_labels(logits, labels).double()
    scores = _scores(*_by_label(counts))
    return _rows(counts[:, 1].sum(dim=-1), ap=average_precision(logits, labels), **scores)


def _by_label(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From counts [k 2 2] the videos [k] that are correctly predicted, that have the label, and that are predicted."""
    return counts[:, 1, 1], counts[:, 1].sum(-1), counts[:, :, 1].sum(-1)


# --- the bootstrap ----------------------------------------------------------------------------------------
#
# The bootstrap estimates how much a number would vary on other videos (Efron, 1979). Each draw takes as many videos as
# there are, with replacement. All runs are scored on the same draws, so differences between runs vary less than their
# scores. Videos of one group (one person, one long recording) are not independent, so whole groups are drawn.


def resampled_means(values: np.ndarray, groups: np.ndarray | None, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means [draws r] of `values` [r v] over videos drawn with replacement, the same for all r rows.

    Videos with equal columns are exchangeable, so only the number of times that each distinct column is drawn is
    sampled: the distribution is the same, and far fewer numbers are needed. `groups` [v] are numbers of groups, which
    are drawn whole. Float32 values are computed in float32, in half the time; all others in float64.
    """
    kind = np.float32 if values.dtype == np.float32 else np.float64
    sums, sizes = values.astype(kind), np.ones(values.shape[1])
    if groups is not None:
        sums = np.stack([np.bincount(groups, row) for row in sums])
        sizes = np.bincount(groups).astype(np.float64)
    columns, counts = np.unique(np.vstack([sums, sizes]).astype(kind), axis=1, return_counts=True)
    products = [weights.astype(kind) @ columns.T for weights in draw_weights(counts, draws, len(counts), rng)]
    return np.concatenate([rows[:, :-1] / rows[:, -1:] for rows in products])


def draw_weights(counts: np.ndarray, draws: int, width: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields how often each of m kinds of units is drawn, [b m]; `counts` [m] are the numbers of units of each kind. A
    chunk has b draws, with at most `DRAWN_CELLS` cells in rows of `width`."""
    total, step, m = int(counts.sum()), max(1, DRAWN_CELLS // width), len(counts)
    single_units = total == m  # each kind has one unit: drawing units one by one then takes a third of the time
    for start in range(0, draws, step):
        size = min(step, draws - start)
        if single_units:
            yield np.stack([np.bincount(rng.integers(m, size=m), minlength=m) for _ in range(size)])
        else:
            yield rng.multinomial(total, counts / total, size=size)


def percentile_interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval that holds the middle share `confidence` of `samples`, rounded so that a 0 is exactly 0."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return round(float(low), 12) + 0.0, round(float(high), 12) + 0.0


def count_units(videos: int, groups: np.ndarray | None) -> int:
    """How many units a draw of `videos` has: their `groups` [v], numbered from 0, or the videos if these are None."""
    return videos if groups is None else int(groups.max()) + 1


def bootstrap_interval(samples: np.ndarray, confidence: float, units: int) -> tuple[float, float] | None:
    """The `percentile_interval` of draws of `units` videos or groups. None for a single one: all its draws are equal,
    and their interval of width 0 would look certain."""
    return percentile_interval(samples, confidence) if units > 1 else None
