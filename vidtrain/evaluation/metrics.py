"""Classification metrics, from logits or from predictions: of one label a video, and below, of several.

Those of one label are made of counts by class, so that their memory grows with the classes: torchmetrics counts in a
matrix of classes by classes, 3.5 GB for each of 21,000-class metrics. Those of several are judged by a sigmoid;
torchmetrics is imported where they use it, as that takes seconds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# What `trainer.monitor` may name, where a video has one label, and where it may have several
ONE_LABEL = ("loss", "top1", "top5", "balanced_accuracy", "precision_macro", "precision_weighted", "recall_macro",
             "recall_weighted", "f1_macro", "f1_weighted", "clip_loss", "clip_top1", "clip_top5")  # fmt: skip
SEVERAL_LABELS = ("loss", "map", "map_micro", "exact_match", "precision_macro", "precision_micro", "recall_macro",
                  "recall_micro", "f1_macro", "f1_micro", "clip_loss", "clip_map", "clip_map_micro")  # fmt: skip
# What is measured where there are no labels; the last two where a labeled dataset is named to probe the features
UNLABELED = ("loss", "effective_rank", "spread", "knn_top1", "linear_top1")
NO_LABELS = (*UNLABELED, "evaluations")
# Which way is better
DIRECTIONS = {name: "min" if name.endswith("loss") else "max" for name in (*ONE_LABEL, *SEVERAL_LABELS, *NO_LABELS)}

# With what closing evaluations report of probabilities besides
CLOSING_DIRECTIONS = DIRECTIONS | {"brier": "min", "ece": "min", "ece_mass": "min"}


def metric_names(num_classes: int, multi_label: bool) -> tuple[str, ...]:
    """The metrics of a dataset with `num_classes` classes."""
    if multi_label:
        return SEVERAL_LABELS
    # with five classes or fewer, top-5 is always right and says nothing
    return tuple(name for name in ONE_LABEL if num_classes > 5 or not name.endswith("top5"))


CELLS = 1 << 24  # logits that are sorted, or taken in double precision, at a time


def from_predictions(predictions: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Top-1, and precision, recall and F1 as macro and weighted averages; `predictions` and `labels` are [v]. Macro
    averages leave out classes that are neither present nor predicted, and balanced accuracy is the mean recall of the
    classes that are present."""
    return from_class_counts(class_counts(predictions, labels, num_classes))


def class_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts int64 [3 k] of each class: of videos that are of it and were taken for it, that are of it, and that were
    taken for it."""
    columns = (labels[predictions == labels], labels, predictions)
    return torch.stack([torch.bincount(column, minlength=num_classes) for column in columns])


def from_class_counts(counts: Tensor) -> dict[str, float]:
    """`from_predictions` for counts [3 k] as `class_counts` gives them, and as the loop sums them."""
    hits, labeled, predicted = counts.double().cpu()
    seen, total = labeled + predicted > 0, labeled.sum()
    metrics = {"top1": (hits.sum() / total).item()}
    # 0 where there is nothing to measure
    scores = {name: score.nan_to_num() for name, score in _scores(hits, labeled, predicted).items()}
    for name, score in scores.items():
        metrics[f"{name}_macro"] = score[seen].mean().item()
        metrics[f"{name}_weighted"] = ((score * labeled).sum() / total).item()
    metrics["balanced_accuracy"] = scores["recall"][labeled > 0].mean().item()
    return metrics


def _scores(hits: Tensor, labeled: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Precision, recall and F1 of each class [k]; nan where nothing was there to measure."""
    return {"precision": hits / predicted, "recall": hits / labeled, "f1": 2 * hits / (labeled + predicted)}


def ranking(logits: Tensor) -> Tensor:
    """Classes [v k] by falling logit [v k]. Of equal ones the first comes first, everywhere: with another rule for
    each metric, a top-1 could pass the top-5."""
    return logits.sort(dim=-1, descending=True, stable=True).indices


def from_logits(logits: Tensor, labels: Tensor, independent: bool = False) -> dict[str, float]:
    """Loss, top-1 and, above five classes, top-5; `logits` are [v k]. The loss is in natural logarithms, without
    smoothing or weights of classes, so that runs which train on other losses compare: cross-entropy, or the mean binary
    cross-entropy over classes where each is judged independently."""
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
    """Rows of a table [v k], as many at a time as have so many `cells` or fewer."""
    step = max(1, cells // k)
    return (slice(start, start + step) for start in range(0, v, step))


def first_classes(logits: Tensor, count: int) -> Tensor:
    """The first `count` classes of `ranking`, or all where there are fewer: int64 [v count]."""
    firsts = [ranking(logits[rows])[:, :count].clone() for rows in parts(*logits.shape)]
    return torch.cat(firsts) if firsts else torch.empty(0, min(count, logits.shape[1]), dtype=torch.int64)


@dataclass(frozen=True)
class Confusion:
    """What videos of each class were taken for: how often (`counts`) each pair of `labels` and `predictions` comes,
    all int64 [m], in the order of the labels. Of k classes there may be k * k pairs, but never more than videos."""

    num_classes: int
    labels: Tensor
    predictions: Tensor
    counts: Tensor

    def by_class(self) -> Tensor:
        """Counts int64 [3 k] as `class_counts` gives them."""
        right = self.labels == self.predictions
        counts = torch.zeros(3, self.num_classes, dtype=torch.int64)
        counts[0, self.labels[right]] = self.counts[right]
        counts[1].index_add_(0, self.labels, self.counts)
        counts[2].index_add_(0, self.predictions, self.counts)
        return counts

    def row(self, label: int) -> Tensor:
        """What videos of a class were taken for: counts int64 [k]."""
        first, last = torch.searchsorted(self.labels, torch.tensor([label, label + 1])).tolist()
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        counts[self.predictions[first:last]] = self.counts[first:last]
        return counts

    def tolist(self) -> list[list[int]]:
        """All rows, with the zeros."""
        return [self.row(label).tolist() for label in range(self.num_classes)]


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Confusion:
    """How often each label [v] comes with each prediction [v]."""
    pairs, counts = torch.unique(labels * num_classes + predictions, return_counts=True)
    return Confusion(num_classes, pairs // num_classes, pairs % num_classes, counts)


def per_class(confusion: Confusion) -> list[dict[str, float | None]]:
    """For each class its support, precision, recall and F1; null where nothing was there to measure."""
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
    `map` is the mean over classes that some video has of the area under its precision-recall curve; `map_micro` takes
    all pairs of video and class as one ranking, and is nan where no video has a label.
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
    """The average precision of each class, float64 [k]; nan for one that no video has. Equal logits are one point of
    the curve."""
    from torchmetrics.functional.classification import binary_average_precision

    # in double precision a sigmoid keeps the order of logits up to 36
    chances, truth = logits.double().sigmoid(), labels.long()
    by_label = torch.full((logits.shape[1],), float("nan"), dtype=torch.float64)
    for k in truth.any(dim=0).nonzero().flatten().tolist():
        by_label[k] = binary_average_precision(chances[:, k], truth[:, k])
    return by_label


def count_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts int64 [k 2 2] of `logits` and `labels` [v k]: for each class by (has it, is predicted to). A label is
    predicted where its logit is above 0: a probability above 0.5."""
    has, predicted = labels.bool(), logits > 0
    cells = ((~has & ~predicted), (~has & predicted), (has & ~predicted), (has & predicted))
    return torch.stack([cell.sum(dim=0) for cell in cells], dim=-1).unflatten(-1, (2, 2))


def from_label_counts(counts: Tensor) -> dict[str, float]:
    """Precision, recall and F1 at a probability of 0.5, of counts [k 2 2] as `count_labels` gives them. Micro counts
    all labels together. Macro is the mean over classes, and leaves out those that are neither present nor predicted. A
    ratio of nothing to nothing is 0."""
    counts = counts.double().cpu()
    kept = counts[counts[:, 1, 1] + counts[:, 0, 1] + counts[:, 1, 0] > 0]
    metrics = {}
    for average, cells in (("micro", counts.sum(dim=0, keepdim=True)), ("macro", kept)):
        for name, value in _scores(*_by_label(cells)).items():
            metrics[f"{name}_{average}"] = value.nan_to_num().mean().item() if len(cells) else 0.0
    return metrics


def exact_match(logits: Tensor, labels: Tensor) -> float:
    """The share of videos whose predicted labels are all theirs and no others."""
    return ((logits > 0) == labels.bool()).all(dim=1).double().mean().item()


def per_label(logits: Tensor, labels: Tensor) -> list[dict[str, float | None]]:
    """For each class its support, average precision, precision, recall and F1; null where nothing was to measure."""
    counts = count_labels(logits, labels).double()
    scores = _scores(*_by_label(counts))
    return _rows(counts[:, 1].sum(dim=-1), ap=average_precision(logits, labels), **scores)


def _by_label(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From counts [k 2 2]: videos [k] that have a label and are predicted to, that have it, that are predicted to."""
    return counts[:, 1, 1], counts[:, 1].sum(-1), counts[:, :, 1].sum(-1)
