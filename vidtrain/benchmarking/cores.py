"""How many cores a machine has to give now, as other programs may use them too."""

import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

START_METHOD = "fork"  # takes milliseconds


def cores_served(processes: int, seconds: float = 0.4, rounds: int = 3) -> float:
    """How many times as much `processes` busy processes get done at once as one does: medians of `rounds`, in turn.

    It is their number where each has a core to itself, and less where others use the machine, or where cores share
    their arithmetic.
    """
    if processes == 1:
        return 1.0
    ratios = []
    for _ in range(rounds):
        alone = _work_done(1, seconds)
        ratios.append(_work_done(processes, seconds) / alone)
    return min(float(processes), max(1.0, statistics.median(ratios)))


def _work_done(processes: int, seconds: float) -> int:
    context = multiprocessing.get_context(START_METHOD)
    connections, workers = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_count, args=(theirs, seconds), daemon=True)
        worker.start()
        theirs.close()
        connections.append(ours)
        workers.append(worker)
    done = sum(connection.recv() for connection in connections)
    for worker in workers:
        worker.join()
    return done


def _count(connection: Connection, seconds: float) -> None:
    """Sends how often a small sum is done within `seconds`."""
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(2000))
        done += 1
    connection.send(done)
