"""What a run does as a trial of a sweep: it is judged on val alone, and may be ended early."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.config.stored_overrides import is_trusted_pruner
from vidtrain.errors import Pruned, UserError
from vidtrain.sweeps.record import TRIAL, read_trial
from vidtrain.tracking.run_log import read_metrics

if TYPE_CHECKING:
    from vidtrain.data.manifest.manifest import Manifest
    from vidtrain.training.ranks.distributed import Ranks


def check_objective(folder: Path, splits: Mapping[str, "Manifest"]) -> None:
    """Raises `UserError` for a trial whose val shares videos with test: the sweep would choose by what it reports."""
    if read_trial(folder) is None or "test" not in splits:
        return
    shared = set(splits["val"].paths) & set(splits["test"].paths)
    if shared:
        raise UserError(
            f"val and test share {len(shared)} videos, such as {min(shared)}: a sweep chooses by val, and what it "
            "chose would then be reported on the same videos. Hold val out of train, such as with "
            "dataset.source.val=train or dataset.source.val_share=0.1"
        )


def _is_of_its_sweep(folder: Path, pruning: Any) -> bool:
    if not isinstance(pruning, Mapping) or not {"storage", "study", "pruner"} <= pruning.keys():
        return False
    begin, _, path = str(pruning["storage"]).partition(":///")
    inside = Path(path).parent.resolve() in folder.resolve().parents
    return (
        begin == "sqlite"
        and inside
        and Path(path).name == "study.db"
        and Path(path).is_file()
        and isinstance(pruning["study"], str)
        and is_trusted_pruner(pruning["pruner"])
    )


def on_validation(
    folder: Path, ranks: "Ranks", console: Any, started_by_sweep: bool = False
) -> Callable[[float], None]:
    """What the loop calls with every validated objective: raises `Pruned`, on every rank, where the study of the sweep
    says that the trial is not worth going on with. For a run that is no such trial it does nothing.

    A study compares a trial with others at the same number of validations, so that is what is reported as its step.
    To be called when the run's metrics.jsonl has been rewound to where the run starts from. Unless `started_by_sweep`,
    which wrote trial.json itself, the folder may be from elsewhere: it then chooses no other study than that of the
    sweep that it lies in, and no other pruner than conf/ ships.
    """
    trial = ranks.on_main(lambda: read_trial(folder))
    if trial is None or trial["pruning"] is None:
        return lambda value: None
    if not started_by_sweep and not _is_of_its_sweep(folder, trial["pruning"]):
        console.warn(
            f"{folder / TRIAL} names a study that does not lie in the sweep's folder, or a pruner that vidtrain does "
            "not ship, so this trial is not pruned; python -m vidtrain.sweep resume runs it with both"
        )
        return lambda value: None
    pruning: list[Any] = []

    def begin() -> None:
        from vidtrain.sweeps.study import Pruning

        done = sum(any(key.startswith("val") for key in row) for row in read_metrics(folder))
        pruning.append(Pruning(trial["number"], trial["pruning"], done, console))

    ranks.on_main(begin)

    def ask(value: float) -> None:
        cause = ranks.on_main(lambda: pruning[0](value))
        if cause is not None:
            raise Pruned(cause)

    return ask
