"""Classification metrics, by torchmetrics, from logits or from predictions.

torchmetrics is imported where it is used: it takes seconds, and a mistake in the configuration is told before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Which way is better: what `trainer.monitor` may name, where a video has one label
ONE_LABEL = {
    "loss": "min",
    "top1": "max",
    "top5": "max",
    "balanced_accuracy": "max",
    "precision_macro": "max",
    "precision_weighted": "max",
    "recall_macro": "max",
    "recall_weighted": "max",
    "f1_macro": "max",
    "f1_weighted": "max",
    "clip_loss": "min",
    "clip_top1": "max",
    "clip_top5": "max",
}
# and where it may have several
SEVERAL_LABELS = {
    "loss": "min",
    "map": "max",
    "map_micro": "max",
    "exact_match": "max",
    "precision_macro": "max",
    "precision_micro": "max",
    "recall_macro": "max",
    "recall_micro": "max",
    "f1_macro": "max",
    "f1_micro": "max",
    "clip_loss": "min",
    "clip_map": "max",
    "clip_map_micro": "max",
}
DIRECTIONS = ONE_LABEL | SEVERAL_LABELS


def metric_names(num_classes: int, multi_label: bool) -> tuple[str, ...]:
    """The metrics of a dataset with so many classes."""
    if multi_label:
        return tuple(SEVERAL_LABELS)
    # with five classes or fewer, top-5 is always right and says nothing
    return tuple(name for name in ONE_LABEL if num_classes > 5 or not name.endswith("top5"))


def from_predictions(predictions: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Top-1, and precision, recall and F1 as macro and weighted averages; `predictions` and `labels` are [v].

    Macro averages leave out classes that are neither present nor predicted, and balanced accuracy is the
    mean recall of the classes that are present.
    """
    from torchmetrics.functional import classification as tm

    arguments = {"num_classes": num_classes, "validate_args": False}
    metrics = {"top1": tm.multiclass_accuracy(predictions, labels, average="micro", **arguments).item()}
    scores = {
        "precision": tm.multiclass_precision,
        "recall": tm.multiclass_recall,
        "f1": tm.multiclass_f1_score,
    }
    for name, score in scores.items():
        for average in ("macro", "weighted"):
            metrics[f"{name}_{average}"] = score(predictions, labels, average=average, **arguments).item()
    recall = tm.multiclass_recall(predictions, labels, average="none", **arguments)
    metrics["balanced_accuracy"] = recall[torch.bincount(labels, minlength=num_classes) > 0].mean().item()
    return metrics


def ranking(logits: Tensor) -> Tensor:
    """Classes [v k] by falling logit [v k]. Of equal ones the first comes first, everywhere: with another rule for
    each metric, a top-1 could pass the top-5."""
    return logits.sort(dim=-1, descending=True, stable=True).indices


def from_logits(logits: Tensor, labels: Tensor, independent: bool = False) -> dict[str, float]:
    """Loss, top-1 and, above five classes, top-5; `logits` are [v k].

    The loss is in natural logarithms, without smoothing or weights of classes, so that runs which train on other
    losses compare: cross-entropy, or the mean binary cross-entropy over classes where each is judged independently.
    """
    if independent:
        answers = F.one_hot(labels, logits.shape[1]).double()
        metrics = {"loss": F.binary_cross_entropy_with_logits(logits.double(), answers).item()}
    else:
        metrics = {"loss": F.cross_entropy(logits.double(), labels).item()}
    hits = ranking(logits) == labels[:, None]
    for k in (1, 5):
        if k < logits.shape[1]:
            metrics[f"top{k}"] = hits[:, :k].any(dim=1).double().mean().item()
    return metrics


def from_confusion(confusion: Tensor) -> dict[str, float]:
    """`from_predictions` for counts [k k] by (label, prediction), as the loop sums them."""
    num_classes = len(confusion)
    counts = confusion.flatten().cpu()
    pairs = torch.arange(num_classes * num_classes).repeat_interleave(counts)
    return from_predictions(pairs % num_classes, pairs // num_classes, num_classes)


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts int64 [k k]: rows are labels, columns are predictions."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(predictions, labels, num_classes=num_classes, validate_args=False)


def per_class(confusion: Tensor) -> list[dict[str, float]]:
    """For each class its support, precision, recall and F1; null where nothing was there to measure."""
    hits = confusion.diagonal().double()
    precision = hits / confusion.sum(dim=0)
    recall = hits / confusion.sum(dim=1)
    f1 = 2 * hits / (confusion.sum(dim=0) + confusion.sum(dim=1))
    return [
        {"support": int(n), "precision": _or_none(p), "recall": _or_none(r), "f1": _or_none(f)}
        for n, p, r, f in zip(confusion.sum(dim=1), precision, recall, f1, strict=True)
    ]


def _or_none(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()
