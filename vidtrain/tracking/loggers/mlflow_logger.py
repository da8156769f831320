"""MLflow: all runs share one store, so that MLflow's pages can compare them."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vidtrain.errors import UserError
from vidtrain.files.escaping import masked
from vidtrain.tracking.loggers.logger import LoggedRun, Metric, check_artifacts, require_packages

SQLITE = "sqlite:///"
MOST_PARAMETERS = 100  # MLflow's limit of parameters per call
LONGEST_VALUE = 500  # characters of a parameter's value: the limit of the oldest stores
RUN_ID = "vidtrain.run_id"


@dataclass
class MlflowLogger:
    """Logs a run to the MLflow store `tracking_uri`: sqlite:///FILE, or http://... of a server.

    The MLflow experiment is `experiment`, or by default the run's group. Images and, with `artifacts="best"`, the best
    checkpoint become artifacts. A SQLite store keeps them in mlartifacts/ beside its file.
    """

    tracking_uri: str
    experiment: str | None = None
    tags: Mapping[str, str] | None = None
    artifacts: Literal["best"] | None = None

    label = "MLflow"
    waits_for_start = False
    start_seconds = 120.0  # creating a store runs dozens of migrations
    close_seconds = 60.0

    def __post_init__(self) -> None:
        store_packages = ["sqlalchemy", "alembic"] if self.tracking_uri.startswith(SQLITE) else []
        require_packages(["mlflow", *store_packages], "mlflow", "mlflow")
        check_artifacts("mlflow", self.artifacts)
        self.tags = dict(self.tags or {})  # a plain dict, as it is pickled to another process

    def start(self, run: LoggedRun) -> None:
        """Begins an MLflow run, or continues the one with the same run id."""
        # MLflow's defaults wait many minutes for a server that does not answer
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        # They would describe the logger's process
        os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
        from mlflow import MlflowClient

        name = self.experiment or run.group
        with locked_store(self.tracking_uri) as store:
            if store is not None and (".." in Path(name).parts or Path(name).is_absolute()):
                raise UserError(
                    f"logger.mlflow.experiment={name} is also the name of a folder, and must not lead out of "
                    "mlartifacts/: use a name without .. that does not begin with /"
                )
            self._client = MlflowClient(tracking_uri=self.tracking_uri)
            existing = self._client.get_experiment_by_name(name)
            artifacts = (store.parent / "mlartifacts" / name).resolve().as_uri() if store else None
            experiment = existing.experiment_id if existing else self._client.create_experiment(name, artifacts)
        earlier = self._client.search_runs(
            [experiment], f"tags.`{RUN_ID}` = '{run.id}'", order_by=["attributes.start_time DESC"]
        )
        self._known: dict[str, int] = {}
        self._again = bool(earlier)
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.set_terminated(self._run, "RUNNING")
        else:
            tags = {RUN_ID: run.id, "run_dir": str(run.folder.resolve()), **(self.tags or {})}
            self._run = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            self._log_settings(run.settings)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        from mlflow.entities import Metric as Point

        now = int(time.time() * 1000)
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        # A resumed run logs some steps again, which the store has already
        new_values = {key: value for key, value in numbers.items() if self._last_step(key) < step}
        self._known |= dict.fromkeys(new_values, step)
        if new_values:
            self._client.log_batch(
                self._run, [Point(key, float(value), now, step) for key, value in new_values.items()]
            )

    def image(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._run, str(path), "plots")

    def page(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._run, str(path))

    def checkpoint(self, name: str, path: Path) -> None:
        if self.artifacts == name:
            self._client.log_artifact(self._run, str(path), "checkpoints")

    def summary(self, values: Mapping[str, Any]) -> None:
        self._client.log_dict(self._run, dict(values), "summary.json")

    def close(self, status: str) -> str | None:
        self._client.set_terminated(self._run, "FINISHED" if status == "finished" else "FAILED")
        return f"to compare runs, mlflow ui --backend-store-uri {masked(self.tracking_uri)}"

    def _last_step(self, key: str) -> int:
        """The last step at which the run has this metric; -1 if it never had it."""
        if key not in self._known:
            points = self._client.get_metric_history(self._run, key) if self._again else []
            self._known[key] = max((point.step for point in points), default=-1)
        return self._known[key]

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in settings.items()]
        for first in range(0, len(params), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=params[first : first + MOST_PARAMETERS])


@contextmanager
def locked_store(tracking_uri: str) -> Iterator[Path | None]:
    """A context that locks a SQLite store, makes its folder, and yields its file; for a server it yields None.

    Without the lock, runs of a sweep that start together could create the same store or experiment twice.
    """
    if not tracking_uri.startswith(SQLITE):
        yield None
        return
    store = Path(tracking_uri.removeprefix(SQLITE))
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_name(f".{store.name}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield store
