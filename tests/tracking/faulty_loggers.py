"""Loggers that fail in every way, for tests: imported by the process of the logger, so plain data until the start."""

import os
import signal
import time
from pathlib import Path

from vidtrain.errors import UserError


class Notes:
    """Writes every call into a file; does at the call `trigger` what `fault` says."""

    label = "Notes"

    def __init__(self, path: Path, trigger: str = "", fault: str = "", waits_for_start: bool = False):
        self.path = path
        self.trigger = trigger
        self.fault = fault
        self.waits_for_start = waits_for_start
        self.start_seconds = 60.0
        self.close_seconds = 60.0

    def start(self, run):
        self._note("start", run.id)

    def log(self, metrics, step):
        self._note("log", step, *metrics.values())

    def image(self, name, path, step):
        self._note("image", name, path.name, step)

    def page(self, name, path, step):
        self._note("page", name, path.name, step)

    def checkpoint(self, name, path):
        self._note("checkpoint", name, path.name)

    def summary(self, values):
        self._note("summary", *values.values())

    def close(self, status):
        self._note("close", status)
        return "read the notes"

    def _note(self, call, *words):
        with self.path.open("a") as file:
            print(call, *words, file=file)
        if call == self.trigger:
            FAULTS[self.fault]()


def refuse():
    raise UserError("no key")


def fail():
    print("what a tracker prints")
    raise OSError("no space left\non the device")


FAULTS = {
    "refuse": refuse,
    "fail": fail,
    "hang": lambda: time.sleep(1000),
    "slow": lambda: time.sleep(0.05),
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "signals": lambda: [os.kill(os.getpid(), each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
}
