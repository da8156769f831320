"""Hydra's submitit launchers, with jobs whose failure the scheduler sees, and that come back when they were stopped.

hydra/launcher=slurm and local. Only imported where one of them is chosen, as it needs the extra `slurm`.
"""

import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from vidtrain.config.renames import accept_old_keys
from vidtrain.errors import UserError
from vidtrain.files.escaping import masked, shown_lines
from vidtrain.files.folders import ROOT
from vidtrain.training.ranks.signals import EXIT_INTERRUPTED, EXIT_STOPPED, leave_at_exit

REQUEUE = ROOT / "experiments" / "slurm" / "requeue.sh"
ENDED = "COMPLETED"
FINAL = {ENDED, "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}


class _VisibleFailures(submitit_launcher.BaseSubmititLauncher):
    """What is mixed into both: the part that runs in the job.

    Hydra and submitit take a job that raised for one that is completed, with exit status 0. Here its exception is the
    result that the launcher gets, and then the process ends with a status that says so.
    """

    def __call__(
        self,
        sweep_overrides: list[str],
        job_dir_key: str,
        job_num: int,
        job_id: str,
        singleton_state: dict[type, Singleton],
    ) -> JobReturn:
        accept_old_keys("train", lambda text: None)  # a process of its own; the launching one has warned
        try:
            returned = super().__call__(sweep_overrides, job_dir_key, job_num, job_id, singleton_state)
        except SystemExit as error:  # Hydra lets it through
            if error.code in (EXIT_STOPPED, EXIT_INTERRUPTED):
                raise  # without a result, for this is not the end
            returned = JobReturn(status=JobStatus.FAILED)
            returned.return_value = UserError(f"it ended with status {error.code}; its output says why")
            leave_at_exit(error.code if isinstance(error.code, int) else 1)
            return returned
        if returned.status == JobStatus.FAILED:
            raised = returned._return_value
            users = isinstance(raised, UserError)
            text = f"error: {raised}" if users else "".join(traceback.format_exception(raised))
            print(shown_lines(masked(text)), file=sys.stderr)
            leave_at_exit(2 if users else 1)
        return returned


class SlurmLauncher(_VisibleFailures, submitit_launcher.SlurmLauncher):
    """A SLURM job for every run. `max_restarts` times one that was stopped is put into the queue again; with 0, never.

    The queue is looked at every `look_seconds`, and more often just after a job was submitted. The other settings are
    submitit's, see conf/hydra/launcher/slurm.yaml.
    """

    def __init__(
        self, max_restarts: int, look_seconds: int, **params: Any
    ):  # Hydra's base class takes them so
        self._max_restarts = max_restarts
        self._look_seconds = look_seconds
        super().__init__(**params)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        SlurmJob.watcher = Queue.instance(self._look_seconds)
        self.params["setup"] = [*(self.params["setup"] or []), *self._requeue_lines()]
        if self._max_restarts:
            self.params["additional_parameters"] = {"requeue": True, **self.params["additional_parameters"]}
        return super().launch(job_overrides, initial_job_idx)

    def _requeue_lines(self) -> list[str]:
        state = Path(self.params["submitit_folder"].split("%")[0]).absolute()
        return [
            f"export VIDTRAIN_STATE={shlex.quote(str(state))} VIDTRAIN_MAX_RESTARTS={self._max_restarts}",
            f"source {shlex.quote(str(REQUEUE))}",
        ]


class LocalLauncher(_VisibleFailures, submitit_launcher.LocalLauncher):
    """A job of one or several processes on this machine for every run."""


class Queue(SlurmInfoWatcher):
    """How submitit learns how its jobs do: of squeue, where it would ask sacct, which not every cluster has, and where
    it would wait forever for a job that was cancelled. A job that has left the queue has ended; one that lost its node
    or was preempted may go on, and has not. Each trial of a sweep waits in a thread of its own, and all ask here."""

    _one: "Queue | None" = None

    def __init__(self, delay_s: int):
        super().__init__(delay_s)
        self._looking = RLock()
        self._asked: frozenset[str] = frozenset()

    @classmethod
    def instance(cls, look_seconds: int) -> "Queue":
        """The one of this process, as all jobs of a sweep are asked for together."""
        cls._one = cls._one or cls(delay_s=look_seconds)
        return cls._one

    def update_if_long_enough(self, mode: str) -> None:
        with self._looking:  # one look serves all that waited for it
            super().update_if_long_enough(mode)

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        return self.get_state(job_id, mode=mode).upper() in FINAL

    def _make_command(self) -> list[str] | None:
        self._asked = frozenset(self._registered.copy() - self._finished)
        if not self._asked:
            return None
        return ["squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%N"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string if isinstance(string, str) else string.decode()
        jobs = super().read_info("JobID|State|NodeList\n" + text)
        gone = {"State": ENDED, "NodeList": ""}
        # of those alone that were there to be asked for: another may have been submitted since squeue looked
        return {job: jobs[job] if job in jobs else gone for job in self._asked}
