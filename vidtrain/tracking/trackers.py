"""W&B, TensorBoard and MLflow, each as a `Logger`. Their packages are imported only in the logger's own process."""

import fcntl
import json
import logging
import netrc
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from vidtrain.errors import UserError
from vidtrain.files.escaping import masked
from vidtrain.tracking.logger_process import LoggedRun, Metric, check_artifacts, require_packages

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)


def _numbers(metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}


# --- W&B --------------------------------------------------------------------------------------------------

FINISH_TIMEOUT_S = 120.0
OFFLINE_CLOSE_S = 30.0
MIN_FREE_BYTES = 256 << 10  # bytes that must be free on the disk: W&B silently drops rows when it is full
LOGGED_STEPS = "mirrored_steps.json"  # the last step of each metric, written when a logger ends
HOW_TO_LOG_IN = "set WANDB_API_KEY, run `wandb login`, or choose logger=wandb_offline."


@dataclass
class WandbLogger:
    """Logs a run to W&B: at once (`mode="online"`), or into files for `wandb sync` (`mode="offline"`).

    All files are in run_dir/wandb. `start` raises UserError if online has no key, and switches to offline if there is
    no network. `artifacts="best"` uploads the best checkpoint.
    """

    project: str
    mode: Literal["offline", "online"] = "offline"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    notes: str | None = None
    artifacts: Literal["best"] | None = None

    label = "W&B"
    init_seconds = 15.0  # the server must answer within this time
    start_seconds = 60.0

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online"):
            raise UserError(f'logger.wandb.mode is "{self.mode}": it must be "offline" or "online".')
        check_artifacts("wandb", self.artifacts)
        self.tags = list(self.tags)
        self.waits_for_start = self.mode == "online"  # `start` refuses if there is no key
        self.close_seconds = FINISH_TIMEOUT_S if self.mode == "online" else OFFLINE_CLOSE_S

    def start(self, run: LoggedRun) -> None:
        """Begins the W&B run, or continues it. Raises UserError if online has no usable key."""
        self._folder = run.folder / "wandb"
        self._folder.mkdir(parents=True, exist_ok=True)  # if it is absent, W&B writes to a temporary folder
        os.environ["WANDB_DATA_DIR"] = str(self._folder)  # offline, artifacts wait here for `wandb sync`
        self._steps = read_steps(self._folder, run.step)
        online = self._begin_online(run) if self.mode == "online" else None
        self._online = online is not None
        self._run = online or self._init("offline", run)
        # A resumed run logs steps again. By its own step counter W&B would drop them, so "step" is a metric of its own
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        if shutil.disk_usage(self._folder).free < MIN_FREE_BYTES:
            raise OSError(f"no space left for {self._folder}")
        # A resumed run logs some steps again that W&B has already
        values = {key: value for key, value in metrics.items() if value is not None}
        new_values = {key: value for key, value in values.items() if key not in self._steps or self._steps[key] < step}
        self._steps |= dict.fromkeys(new_values, step)
        if new_values:
            self._run.log({**new_values, "step": step})

    def image(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path)), "step": step})

    def page(self, name: str, path: Path, step: int) -> None:
        import wandb

        with path.open(encoding="utf-8") as file:  # inject=False: without W&B's own style sheet
            self._run.log({name: wandb.Html(file, inject=False), "step": step})

    def checkpoint(self, name: str, path: Path) -> None:
        import wandb

        if self.artifacts == name:
            artifact = wandb.Artifact(f"{name}-{self._run.id}", type="model")
            artifact.add_file(str(path))
            self._run.log_artifact(artifact)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def close(self, status: str) -> str | None:
        import wandb

        code = 0 if status == "finished" else 1
        self._run.finish(exit_code=code)
        wandb.teardown(exit_code=code)  # all files are written only when W&B's service has ended
        (self._folder / LOGGED_STEPS).write_text(json.dumps(self._steps), encoding="utf-8")
        return None if self._online else f"to upload this run, wandb sync {self._folder}/offline-run-*"

    def _begin_online(self, run: LoggedRun) -> "wandb.Run | None":
        """The run on the server, or None if the server cannot be used now."""
        import wandb

        require_key()
        try:
            return self._init("online", run)
        except Exception as error:
            cause = " ".join(str(error).split())
            if isinstance(error, wandb.errors.AuthenticationError):
                raise UserError(f"W&B refused the key ({cause}): {HOW_TO_LOG_IN}") from error
            # No network, no such project, a server in trouble
            log.warning("W&B cannot be used online (%s): offline, for `wandb sync` later", cause)
            with suppress(Exception):  # W&B's service would not start the same run id a second time
                wandb.teardown(exit_code=1)
            os.environ.pop("WANDB_SERVICE", None)  # the service's address, which a failed teardown leaves behind
            return None

    def _init(self, mode: Literal["offline", "online"], run: LoggedRun) -> "wandb.Run":
        import wandb  # takes seconds, so it is imported only where it is used

        return wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            group=self.group or run.group,
            job_type=self.job_type,
            tags=self.tags,
            notes=self.notes,
            name=run.name,
            id=run.id,
            resume="allow",
            config=dict(run.settings),
            dir=run.folder,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=self.init_seconds,
                finish_timeout=FINISH_TIMEOUT_S,
                disable_git=True,  # git.json in the run folder has it, for the training process
                x_stats_pid=os.getppid(),  # system metrics of the training process, not of this one
            ),
        )


def read_steps(folder: Path, start: int) -> dict[str, int]:
    """The last step of each metric that the earlier attempt logged, if the run resumes from step `start` > 0.

    Empty for a new run, or if the earlier logger was killed: it may have lost rows, so all rows are logged again."""
    path = folder / LOGGED_STEPS
    steps = json.loads(path.read_text(encoding="utf-8")) if start and path.is_file() else {}
    path.unlink(missing_ok=True)  # it is absent while a logger runs, so that a killed logger leaves none
    return steps


def require_key() -> None:
    """Raises UserError if W&B has no key: on a terminal it would prompt for one and wait forever."""
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return
    if not _netrc_has(urlsplit(settings.base_url).netloc):
        raise UserError(f"W&B has no key for {settings.base_url}: {HOW_TO_LOG_IN}")


def _netrc_has(host: str) -> bool:
    """Whether `wandb login` has left a key for the host."""
    for name in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        path = Path(name).expanduser()
        if path.is_file():
            try:
                return netrc.netrc(path).authenticators(host) is not None
            except netrc.NetrcParseError as error:
                raise UserError(f"{path} cannot be read ({error}): correct it, or {HOW_TO_LOG_IN}") from error
    return False


# --- TensorBoard -----------------------------------------------------------------------------------------


class TensorBoardLogger:
    """Writes run_dir/tensorboard, so that `tensorboard --logdir outputs` shows all runs side by side.

    It needs no PyTorch: it uses TensorBoard's own writer. TensorBoard stores numbers as float32.
    """

    label = "TensorBoard"
    waits_for_start = False
    start_seconds = 60.0
    close_seconds = 30.0

    def __init__(self) -> None:
        require_packages(["tensorboard"], "tensorboard", "tensorboard")

    def start(self, run: LoggedRun) -> None:
        """Opens a new event file. In a resumed run it makes TensorBoard hide the later events of the attempt before."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = run.folder / "tensorboard"
        resumed = self._folder.is_dir() and any(self._folder.iterdir())
        self._writer = EventFileWriter(str(self._folder), flush_secs=10)
        if resumed:
            log = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=run.step + 1, session_log=log))
        else:
            self._text("settings", f"{run.name} ({run.group})\n\n", run.settings, 0)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        self._add([{"tag": key, "simple_value": value} for key, value in _numbers(metrics).items()], step)

    def image(self, name: str, path: Path, step: int) -> None:
        width, height = png_size(path)
        data = path.read_bytes()
        image = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": data}
        self._add([{"tag": name, "image": image}], step)

    def page(self, name: str, path: Path, step: int) -> None:
        """TensorBoard shows no pages; this one stays in the run folder only."""

    def checkpoint(self, name: str, path: Path) -> None:
        """TensorBoard stores no files; this one stays in the run folder only."""

    def summary(self, values: Mapping[str, Any]) -> None:
        self._text("summary", "", values, values["steps"] if "steps" in values else 0)

    def close(self, status: str) -> str | None:
        self._writer.flush()
        self._writer.close()
        return f"to look at this run, tensorboard --logdir {self._folder}"

    def _text(self, tag: str, heading: str, values: Mapping[str, Any], step: int) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        rows = "\n".join(f"    {key}: {value}" for key, value in values.items())
        self._add(text_pb(tag, heading + rows).value, step)

    def _add(self, values: Sequence[Any], step: int) -> None:
        """Adds values of a summary; each is a protobuf message of TensorBoard, or a dict of its fields."""
        from tensorboard.compat.proto.event_pb2 import Event

        if values:
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary={"value": values}))


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file, from its header."""
    header = path.open("rb").read(24)
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


# --- MLflow -----------------------------------------------------------------------------------------------

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
        # System metrics would describe the logger's process
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
        self._last_steps: dict[str, int] = {}
        self._resumed = bool(earlier)
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
        # A resumed run logs some steps again that the store has already
        new_values = {key: value for key, value in _numbers(metrics).items() if self._last_step(key) < step}
        self._last_steps |= dict.fromkeys(new_values, step)
        if new_values:
            self._client.log_batch(self._run, [Point(key, value, now, step) for key, value in new_values.items()])

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
        if key not in self._last_steps:
            points = self._client.get_metric_history(self._run, key) if self._resumed else []
            self._last_steps[key] = max((point.step for point in points), default=-1)
        return self._last_steps[key]

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
