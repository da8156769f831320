"""Shared by all tests: one thread, no network, and where real videos for development may lie."""

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Generator

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
# Else every process that a test starts compiles all of torch anew, which takes it longer than all the rest
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

from pathlib import Path
from typing import IO

import pytest

STORED_VIDEOS = "VIDTRAIN_TEST_VIDEOS"  # environment variable with a folder: see stored_videos.py
VIDEOS_PREFIX = "vidtrain-test-videos-"
gc.disable()  # until `pytest_collection` has ended
sys.dont_write_bytecode = False  # nor does this process compile all anew

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real videos beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real videos in {SHARED_DATA.name}/ beside the checkout")
    return SHARED_DATA


@pytest.hookimpl(optionalhook=True)  # without xdist there are no workers
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """All cores for folders; tests of one file, which stay together, run in this process."""
    single = len(config.args) == 1 and Path(config.args[0].partition("::")[0]).is_file()
    return 0 if single else None  # None: as many as there are cores


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder of videos that all tests share; xdist's workers inherit it."""
    if STORED_VIDEOS not in os.environ:
        remove_left_videos()
        os.environ[STORED_VIDEOS] = tempfile.mkdtemp(prefix=f"{VIDEOS_PREFIX}{os.getpid()}-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(STORED_VIDEOS)))


def remove_left_videos() -> None:
    """Removes the folders of videos of test runs that were killed: their names hold the numbers of their processes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{VIDEOS_PREFIX}[1-9]*-*"):
        try:
            os.kill(int(folder.name.removeprefix(VIDEOS_PREFIX).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)  # another run may remove it, too
        except (ValueError, OverflowError, PermissionError):  # not a name of ours; a process of another user
            continue


def leave_unsynced(file: int | IO) -> None:
    """What tests write need not outlive a power cut: a file system waits 3 ms for the disk when it is asked to flush a
    file, and as long again when that file is removed. Programs that are started as `python -m` flush as ever."""
    os.fstat(file if isinstance(file, int) else file.fileno())  # it must be open, as ever


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Importing and collecting make a million objects that stay: the collector of garbage never looks at them, neither
    here, where that takes a fifth of the time, nor in the tests, of which some have it look at all there is."""
    if session.config.pluginmanager.hasplugin("dsession"):  # its workers collect
        return (yield)
    from quick_hydra import remember
    from stored_videos import store_videos

    remember()
    store_videos()
    os.fsync = leave_unsynced
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        # or libraries of C++ take what is left for leaks, and list them; at the very end, as pytest collects before
        atexit.register(gc.unfreeze)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """The fork server is made here: all is imported, and no test has run."""
    if "fork_server" in sys.modules:  # some test needs it
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            sys.modules["fork_server"].fork_off()
    return (yield)


@pytest.hookimpl(tryfirst=True)  # before -m takes slow ones away
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that with -n no core is idle at the end: that of SLURM takes minutes, mostly of
    waiting; of the others those with slow tests take longer, and those with many."""
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += 10_000 if "slurm" in item.keywords else 30 if "slow" in item.keywords else 1
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(autouse=True)
def quiet_again():
    """Programs that a test runs set up logging to the output of that test, which is closed when it ends."""
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    logging.getLogger("vidtrain").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def without_pictures():
    """Runs that the tests of a file start in this process end without pictures, as those of the fork server do."""
    from pictures import pictures_drawn

    with pictures_drawn(False):
        yield
