"""One undisturbed run for all faults."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for fault_injection, which experiments/reliability uses, too

from fault_injection import TINY, start_training


@pytest.fixture(scope="session")
def faults(tmp_path_factory):
    """Starts runs: `faults(folder, *overrides)` gives a Child."""
    data_root = tmp_path_factory.mktemp("faults") / "data"

    def start(run, *overrides, **more):
        return start_training(run, f"data_root={data_root}", *TINY, *overrides, **more)

    start.data_root = data_root
    return start


@pytest.fixture(scope="session")
def alone(faults, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    child = faults(run)
    assert child.wait() == 0, child.said
    return run
