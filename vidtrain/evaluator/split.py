"""The closing evaluation of a training run: one split, by all ranks."""

from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from vidtrain.build.data import EvalData
from vidtrain.build.parts import part, protocol_text
from vidtrain.evaluation.report import Report, report, write_report
from vidtrain.evaluation.views import view_table
from vidtrain.files.escaping import shown
from vidtrain.training.precision import autocast
from vidtrain.training.ranks.distributed import Ranks


def evaluate_split(
    cfg: DictConfig,
    model: nn.Module,
    data: EvalData,
    transform: nn.Module,
    ranks: Ranks,
    console,
    out: Path,
) -> Report:
    """Evaluates a split by all ranks and writes its tables into `out`; every rank returns the report.

    The closing evaluation of a training run: it keeps no views, which `evaluate` does.
    """

    context = autocast(ranks, cfg.trainer.precision)
    batches = data.batches(console)
    table = view_table(model, batches, transform, len(data.manifest), ranks.device, context, data.crops)
    found = report(table, model.fusion, protocol_text(cfg, model.fusion), part(cfg.loss).independent)
    for path, cause in table.missing:
        console.warn(f"missing from {data.split}: {shown(path)} ({shown(cause)})")
    if ranks.is_main:
        write_report(found, out, data.manifest.paths, data.manifest.classes)
    return found
