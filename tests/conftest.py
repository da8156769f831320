"""Shared by all tests: one thread, no network, and where real videos for development may lie."""

import logging
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real videos beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real videos in {SHARED_DATA.name}/ beside the checkout")
    return SHARED_DATA


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """All cores for folders; tests of one file, which stay together, run in this process."""
    single = len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file()
    return 0 if single else None  # None: as many as there are cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With -n, the one file that takes minutes of waiting comes first, so that the others run beside it."""
    items.sort(key=lambda item: "slurm" not in item.keywords)


@pytest.fixture(autouse=True)
def quiet_again():
    """Programs that a test runs set up logging to the output of that test, which is closed when it ends."""
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    logging.getLogger("vidtrain").setLevel(logging.NOTSET)
