"""W&B as a mirror: it never asks, never hangs, and after its start never raises into training."""

import logging
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from vidtrain.errors import UserError
from vidtrain.tracking.mirror import Metric

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

INIT_TIMEOUT_S = 15.0
FINISH_TIMEOUT_S = 120.0
HOW_TO_LOG_IN = "set WANDB_API_KEY, run `wandb login`, or choose logger=wandb_offline."


class WandbMirror:
    """Mirrors a run to W&B: at once (`mode="online"`), or into files for `wandb sync` (`mode="offline"`).

    Everything lies in run_dir/wandb. Online without a key is a UserError at the start; online without a
    network becomes offline there. After that, any failure switches the mirror off with one warning.
    """

    def __init__(
        self,
        project: str,
        mode: Literal["offline", "online"] = "offline",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
    ):
        if mode not in ("offline", "online"):
            raise UserError(f'logger.mode is "{mode}": it must be "offline" or "online".')
        self.project = project
        self.mode = mode
        self.entity = entity
        self.group = group
        self.job_type = job_type
        self.tags = list(tags)
        self.notes = notes
        self._run: wandb.Run | None = None

    def start(self, run_dir: Path, run_id: str, config: dict[str, Any], name: str) -> None:
        """Begin the W&B run `run_id`, or go on with it. Raises UserError where online has no usable key."""
        run_dir.mkdir(parents=True, exist_ok=True)  # else W&B writes to a temporary folder
        run = self._online(run_dir, run_id, config, name) if self.mode == "online" else None
        try:
            self._run = run or self._init("offline", run_dir, run_id, config, name)
        except Exception as error:  # whatever fails in a mirror, the run folder holds the truth
            self._switch_off(error)
        # A resumed run logs steps that W&B has seen already, and its own counter would drop them.
        self._attempt(lambda run: run.define_metric("*", step_metric="step"))

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        known = {key: value for key, value in metrics.items() if value is not None}
        self._attempt(lambda run: run.log({**known, "step": step}))

    def image(self, name: str, path: Path) -> None:
        import wandb

        self._attempt(lambda run: run.log({name: wandb.Image(str(path))}))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._attempt(lambda run: run.summary.update(dict(values)))

    def close(self, status: str) -> None:
        self._attempt(lambda run: run.finish(exit_code=0 if status == "finished" else 1))
        self._run = None

    def _online(self, run_dir: Path, run_id: str, config: dict[str, Any], name: str) -> "wandb.Run | None":
        """The run on the server, or None where that cannot be had now."""
        import wandb

        require_key()
        try:
            return self._init("online", run_dir, run_id, config, name)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"W&B refused the key ({one_line(error)}): {HOW_TO_LOG_IN}") from error
        except Exception as error:  # no network, no such project, a server in trouble
            log.warning("W&B cannot be used online (%s): offline, for `wandb sync` later", one_line(error))
            end_service()  # it holds the run id
            return None

    def _init(self, mode: str, run_dir: Path, run_id: str, config: dict[str, Any], name: str) -> "wandb.Run":
        import wandb  # takes seconds, and only runs that mirror need it

        return wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            group=self.group,
            job_type=self.job_type,
            tags=self.tags,
            notes=self.notes,
            name=name,
            id=run_id,
            resume="allow",
            config=config,
            dir=run_dir,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
            ),
        )

    def _attempt(self, action: Callable[["wandb.Run"], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever fails in a mirror, the run folder holds the truth
            self._switch_off(error)

    def _switch_off(self, error: Exception) -> None:
        self._run = None
        log.warning("W&B is switched off for this run: %s: %s", type(error).__name__, one_line(error))
        end_service()


def require_key() -> None:
    """Raise UserError where W&B would have to ask for a key: on a terminal it waits for it for ever."""
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return
    if not _netrc_has(urlsplit(settings.base_url).netloc):
        raise UserError(f"W&B has no key for {settings.base_url}: {HOW_TO_LOG_IN}")


def end_service() -> None:
    """Let go of W&B's service process, so that the next run starts a new one.

    A dead one would fail that run too, and print a traceback when this process ends.
    """
    import wandb

    with suppress(Exception):  # it is given up for a failure that has been reported
        wandb.teardown(exit_code=1)
    os.environ.pop("WANDB_SERVICE", None)  # its address, which a failed teardown leaves


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _netrc_has(host: str) -> bool:
    """Whether `wandb login` has left a key for the host."""
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in (Path(name).expanduser() for name in names):
        if path.is_file():
            try:
                return netrc.netrc(path).authenticators(host) is not None
            except netrc.NetrcParseError as error:
                raise UserError(f"{path} cannot be read ({error}): mend it, or {HOW_TO_LOG_IN}") from error
    return False
