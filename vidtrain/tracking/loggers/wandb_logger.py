"""W&B. The logger never prompts for a key; as it runs in its own process, W&B cannot delay or stop training."""

import json
import logging
import netrc
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from vidtrain.errors import UserError
from vidtrain.tracking.loggers.logger import LoggedRun, Metric, check_artifacts

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

FINISH_TIMEOUT_S = 120.0
OFFLINE_CLOSE_S = 30.0
LEAST_FREE = 256 << 10  # bytes that must be free on the disk: W&B silently drops rows when it is full
STEPS = "mirrored_steps.json"  # the last step of each metric, written when a logger ends
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
        if shutil.disk_usage(self._folder).free < LEAST_FREE:
            raise OSError(f"no space left for {self._folder}")
        # A resumed run logs some steps again, which W&B has already
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
        (self._folder / STEPS).write_text(json.dumps(self._steps), encoding="utf-8")
        return None if self._online else f"to upload this run, wandb sync {self._folder}/offline-run-*"

    def _begin_online(self, run: LoggedRun) -> "wandb.Run | None":
        """The run on the server, or None if the server cannot be used now."""
        import wandb

        require_key()
        try:
            return self._init("online", run)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"W&B refused the key ({one_line(error)}): {HOW_TO_LOG_IN}") from error
        except Exception as error:  # no network, no such project, a server in trouble
            log.warning("W&B cannot be used online (%s): offline, for `wandb sync` later", one_line(error))
            end_service()  # the service would not start the same run id a second time
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
    path = folder / STEPS
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


def end_service() -> None:
    """Ends W&B's service process, so that the next run starts a new one."""
    import wandb

    with suppress(Exception):  # the caller has already reported why the service cannot be used
        wandb.teardown(exit_code=1)
    os.environ.pop("WANDB_SERVICE", None)  # the service's address, which a failed teardown leaves behind


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _netrc_has(host: str) -> bool:
    """Whether `wandb login` has left a key for the host."""
    for name in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        path = Path(name).expanduser()
        if path.is_file():
            try:
                return netrc.netrc(path).authenticators(host) is not None
            except netrc.NetrcParseError as error:
                raise UserError(f"{path} cannot be read ({error}): mend it, or {HOW_TO_LOG_IN}") from error
    return False
