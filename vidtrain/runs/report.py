"""The close of a run: its best checkpoint on the split that selected nothing, in tables, pictures and summary.json."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn

from vidtrain.build import data as build_data
from vidtrain.errors import DivergedError
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.evaluation.report import Report
from vidtrain.evaluator.report import results_table
from vidtrain.evaluator.split import evaluate_split
from vidtrain.features.frozen_encoder import show_head_table, write_head_table
from vidtrain.features.head_table import head_table
from vidtrain.runs import data as run_data
from vidtrain.runs import pictures as run_pictures
from vidtrain.runs.assemble import Parts, RunData
from vidtrain.tracking.run_log import RunLog, each_metric
from vidtrain.training.checkpoints import checkpoint
from vidtrain.training.checkpoints.resume import load_best
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.state import TrainState
from vidtrain.training.validation import HEADS, VALIDATED


@dataclass(frozen=True)
class Result:
    """The best checkpoint of a run, evaluated."""

    split: str  # test, or val where there is no test
    report: Report
    weights: str  # raw, or ema: their average
    heads: list[dict[str, Any]]  # of a grid, the best first

    @property
    def also_selected(self) -> bool:
        return self.split == "val"


def report_best(
    cfg: DictConfig,
    data: RunData,
    parts: Parts,
    model: nn.Module,
    state: TrainState,
    ranks: Ranks,
    log: RunLog,
    console: Any,
) -> Result:
    """Gives `model` the best weights, evaluates them and writes what closes the run.

    Raises `DivergedError` where no evaluation gave a finite number, and `UserError` where best.pt is damaged.
    """
    settings, folder = parts.settings, log.run_dir
    if state.best is None:
        raise DivergedError(f"no evaluation gave a finite {settings.monitor}: no best checkpoint to report")
    file = folder / "checkpoints" / "best.pt"
    ranks.barrier()
    best = load_best(file, state)
    checkpoint.restore(model, best["model"], str(file))
    split = "test" if "test" in data.splits else "val"
    evaluated = build_data.eval_data(cfg, split, data.splits[split], data.reading, ranks)
    out = folder / "eval" / split
    found = evaluate_split(cfg, model, evaluated, parts.transform, ranks, console, out)
    heads = []
    if ranks.is_main:
        rows = [row for row in each_metric(folder) if any(key.startswith(HEADS) for key in row)]
        heads = head_table(rows, parts.phases, settings.monitor, DIRECTIONS[settings.monitor])
        if heads:
            write_head_table(heads, folder / "heads.csv")
    # checkpoints of before there was an average of the weights do not say whose they are
    weights = best["weights"] if "weights" in best else "raw"
    result = Result(split, found, weights, heads)
    # one step on, so that a run killed before its summary does not keep these rows twice
    prefix = "final" if result.also_selected else "test"
    log.log({f"{prefix}/{name}": value for name, value in found.metrics.items()}, state.total_step + 1)
    log.summary(
        {
            "status": "finished",
            "monitor": settings.monitor,
            "best": state.best,
            "best_step": state.best_step,
            "best_weights": weights,
            **({"best_head": best["head"]} if heads else {}),
            "steps": state.total_step,
            "minutes": round(state.seconds / 60, 2),
            **({"data_changed": True} if run_data.changed_in_mid_run(folder) else {}),
            "split": split,
            "split_also_selected": result.also_selected,
            "coverage": found.coverage,
            "protocol": found.protocol,
            **found.metrics,
        }
    )
    return result


def draw_pictures(
    cfg: DictConfig, data: RunData, result: Result, state: TrainState, log: RunLog, console: Any
) -> None:
    """Offers best.pt to the trackers and draws the pictures; for the main rank alone."""
    log.checkpoint("best", log.run_dir / "checkpoints" / "best.pt")
    manifest = data.splits[result.split]
    run_pictures.draw(
        cfg, log, result.report, result.split, manifest, data.reading, state.total_step, console
    )


def show(result: Result, state: TrainState, monitor: str, console: Any) -> None:
    """The closing tables."""
    if result.heads:
        show_head_table(console, result.heads, monitor)
    selected = ", which also selected it: there is no test split" if result.also_selected else ""
    title = f"best checkpoint ({VALIDATED[result.weights]} {monitor} {state.best:.4f}) on {result.split}{selected}"
    results_table(console, title, result.report)
