"""Hydra's submitit launchers, changed so that the scheduler sees a job's failure, and requeues a stopped job.

They are hydra/launcher=slurm and local. This module needs the extra `slurm`, so it is imported only if one is chosen.
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
from vidtrain.training.process import EXIT_INTERRUPTED, EXIT_STOPPED, leave_at_exit

REQUEUE = ROOT / "experiments" / "slurm" / "requeue.sh"
ENDED = "COMPLETED"
FINAL = {ENDED, "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}


class _VisibleFailures(submitit_launcher.BaseSubmititLauncher):
    """Mixin of both launchers: the part that runs in the job.

    With Hydra and submitit alone, a job that raised counts as completed, with exit status 0. Here the launcher gets
    its exception as the result, and the process then ends with a nonzero status.
    """

    def __call__(
        self,
        sweep_overrides: list[str],
        job_dir_key: str,
        job_num: int,
        job_id: str,
        singleton_state: dict[type, Singleton],
    ) -> JobReturn:
        accept_old_keys("train", lambda text: None)  # without warnings: the launching process has given them
        try:
            returned = super().__call__(sweep_overrides, job_dir_key, job_num, job_id, singleton_state)
        except SystemExit as error:  # Hydra does not catch it
            if error.code in (EXIT_STOPPED, EXIT_INTERRUPTED):
                raise  # the job has no result yet: it is requeued or resumed
            returned = JobReturn(status=JobStatus.FAILED)
            returned.return_value = UserError(f"it ended with status {error.code}; its output says why")
            leave_at_exit(error.code if isinstance(error.code, int) else 1)
            return returned
        if returned.status == JobStatus.FAILED:
            raised = returned._return_value
            is_user_error = isinstance(raised, UserError)
            text = f"error: {raised}" if is_user_error else "".join(traceback.format_exception(raised))
            print(shown_lines(masked(text)), file=sys.stderr)
            leave_at_exit(2 if is_user_error else 1)
        return returned


class SlurmLauncher(_VisibleFailures, submitit_launcher.SlurmLauncher):
    """Runs each trial as a SLURM job. A job that was stopped is requeued, at most `max_restarts` times.

    squeue is called every `look_seconds`, and more often just after a job was submitted. The other settings are
    submitit's, see conf/hydra/launcher/slurm.yaml.
    """

    # Hydra's base class takes submitit's settings as keywords
    def __init__(self, max_restarts: int, look_seconds: int, **params: Any):
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
    """Runs each trial as a job of one or several processes on this machine."""


class Queue(SlurmInfoWatcher):
    """Tells submitit the states of its jobs, from squeue. Submitit's own watcher calls sacct, which not every cluster
    has, and waits forever for a cancelled job. A job that has left the queue has ended. A job that lost its node or
    was preempted may go on, so it has not. Each trial of a sweep waits in its own thread, and all use one `Queue`."""

    _one: "Queue | None" = None

    def __init__(self, delay_s: int):
        super().__init__(delay_s)
        self._lock = RLock()
        self._asked: frozenset[str] = frozenset()

    @classmethod
    def instance(cls, look_seconds: int) -> "Queue":
        """The only instance of this process, so that one call of squeue serves all jobs of a sweep."""
        cls._one = cls._one or cls(delay_s=look_seconds)
        return cls._one

    def update_if_long_enough(self, mode: str) -> None:
        with self._lock:  # threads that waited for the lock use the answer of the call before
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
        # Only jobs known before squeue ran: a job that was submitted since is not in its answer and has not ended
        return {job: jobs[job] if job in jobs else gone for job in self._asked}
