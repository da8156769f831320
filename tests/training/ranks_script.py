"""Two ranks that take steps together, until one of them meets what the test asks for. Run by test_heartbeat.py.

python ranks_script.py FOLDER SCENARIO PORT ...: all scenarios at once, each by two processes forked from this one, that
has imported torch for them. Statuses and outputs of the ranks are left in FOLDER/SCENARIO.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # which every rank would else import by itself, when it makes its optimizer

sys.path.append(str(Path(__file__).parents[1]))
import conftest

from vidtrain.errors import UserError
from vidtrain.runs.attempts import run_attempt
from vidtrain.training.distributed import Ranks, join_ranks
from vidtrain.training.process import PreemptionHandler

TRAINED = ("whole", "step", "evaluation")
PATIENCE = 6.0  # seconds without a sign of life
LONG = 120  # seconds after which a rank ends by itself, and the test fails


def refuse() -> None:
    raise UserError("mend this setting\nand that one")


def meet(scenario: str, ranks: Ranks, step: int) -> None:
    """What happens to a rank before a step."""
    if step != 20:
        return
    what, _, which = scenario.rpartition("_")
    if scenario == "refuse_main":
        ranks.on_main(refuse)
    if which not in ("all", str(ranks.rank)):
        return
    if what == "raise":
        raise ValueError("a defect in step 20")
    if what == "refuse":
        refuse()
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "signal":
        os.kill(os.getpid(), signal.SIGUSR1)
    if what == "memory":
        torch.empty(1 << 60, dtype=torch.uint8)


def steps(folder: Path, scenario: str) -> None:
    with (
        PreemptionHandler() as preemption,
        join_ranks("cpu", PATIENCE) as ranks,
        run_attempt(folder, ranks, preemption) as mine,
    ):
        mine.begin(0)
        deadline = time.monotonic() + LONG
        with preemption.deferred():
            for step in range(1 << 30):
                meet(scenario, ranks, step)
                stopping = ranks.any_rank(preemption.stop_requested)
                if stopping:
                    (folder / f"stopped_at_{ranks.rank}").write_text(str(step))
                    preemption.raise_stopped()
                assert time.monotonic() < deadline
                time.sleep(0.01)


def train(folder: Path, scenario: str) -> None:
    """A whole run of the small model; rank 0 gets a signal in its n-th step or evaluation."""
    where, _, number = scenario.partition("_")
    with PreemptionHandler() as preemption, join_ranks("cpu") as ranks:
        calls = 0
        number = number or 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == int(number) and not (folder / "resumed").exists() and ranks.is_main:
                os.kill(os.getpid(), signal.SIGTERM)

        step = torch.optim.SGD.step
        if where == "step":
            torch.optim.SGD.step = lambda self: (step(self), count())[0]
        run = conftest.small_loop(folder, ranks)
        settings = {"save_every": "3ep", "ema": 0.9, "eval_every": "3it"}
        run(
            "run",
            preemption=preemption,
            on_evaluation=count if where == "evaluation" else lambda: None,
            **settings,
        )
        ranks.barrier()
        (folder / "resumed").touch()


def child(folder: Path, scenario: str, port: int, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    output = os.open(folder / f"output_{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    (train if scenario.startswith(TRAINED) else steps)(folder, scenario)


def main() -> None:
    root, *rest = sys.argv[1:]
    running = {}
    for scenario, port in zip(rest[::2], rest[1::2], strict=True):
        folder = Path(root) / scenario
        folder.mkdir(exist_ok=True)
        for rank in (0, 1):
            pid = os.fork()
            if pid == 0:
                return child(folder, scenario, int(port), rank)
            running[pid] = (folder, rank, time.monotonic())
    frozen = [pid for pid, (folder, rank, _) in running.items() if folder.name == f"freeze_{rank}"]
    while set(running) - set(frozen):
        pid, status = os.wait()
        folder, rank, since = running.pop(pid)
        took = time.monotonic() - since
        (folder / f"status_{rank}").write_text(f"{os.waitstatus_to_exitcode(status)} {took}")
    for pid in frozen:  # woken when the other rank has ended, it sees that it is alone
        os.kill(pid, signal.SIGCONT)
    for pid in frozen:
        folder, rank, _ = running.pop(pid)
        _, status = os.waitpid(pid, 0)
        (folder / f"status_{rank}").write_text(f"{os.waitstatus_to_exitcode(status)} 0")


if __name__ == "__main__":
    main()
