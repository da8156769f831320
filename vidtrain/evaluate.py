"""Evaluates a checkpoint without training, with the transforms and protocol of its validation, or with others.

python -m vidtrain.evaluate checkpoint=outputs/motion/NAME eval_clips=4 frame_order_ablations=[shuffled,reversed]
python -m vidtrain.evaluate from_table=outputs/motion/NAME/eval/test_4x3 fusion=vote
"""

from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig

from vidtrain.app.launch import launch
from vidtrain.app.view_tables import VIEWS, check, compute_views


def evaluate(cfg: DictConfig) -> float:
    """Evaluates, and returns top-1 of the chosen protocol, or mean average precision if videos have several labels."""
    from vidtrain.evaluation.calibrated import STORED, find_calibration
    from vidtrain.evaluation.protocols import headline
    from vidtrain.evaluator.report import publish, republish
    from vidtrain.files.atomic import write_json_atomic
    from vidtrain.tracking.console import make_console
    from vidtrain.training.distributed import join_ranks

    if cfg.from_table is not None:  # no video and no model is opened
        out, console = Path(cfg.out) if cfg.out else None, make_console(is_main=True)
        chosen = (cfg.fusion, cfg.frame_order, cfg.eval_clips, cfg.crops, cfg.calibrated)
        return republish(Path(cfg.from_table), out, *chosen, console)
    with join_ranks(cfg.device) as ranks, ExitStack() as stack:
        console = make_console(ranks.is_main)
        evaluated = compute_views(cfg, ranks, console, stack)

        def write() -> float:
            views, out = evaluated.views, evaluated.out
            title, order = f"{evaluated.checkpoint} on {cfg.split}", views.about["orders"][0]
            weights = cfg.weights or STORED
            calibration = find_calibration(evaluated.checkpoint, evaluated.card, weights, cfg.calibrated)
            report = publish(views, out, title, console, evaluated.fusion, order, calibration=calibration)
            if evaluated.changes is None:
                (out / "data_changes.json").unlink(missing_ok=True)
            else:  # the data have changed since the run was started
                write_json_atomic(out / "data_changes.json", evaluated.changes)
            console.info(f"tables in {out}, the logits of every view in {out / VIEWS}")
            return report.metrics[headline(views.labels.ndim == 2)]

        return ranks.on_main(write)


def main() -> None:
    launch("evaluate", evaluate, check)


if __name__ == "__main__":
    main()
