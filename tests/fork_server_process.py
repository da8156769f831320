"""The process behind fork_server: it imports once, composes once, and forks a child for each program that is started.

A request is a message of JSON on the socket that it inherits, {"pid": ...} for a status or what a program needs, which
comes with the two files for what it prints. Each is answered with a message.
"""

import gc
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)


def fork(requests: socket.socket) -> int:
    """Forks a server off a process of pytest; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _leave_pytest(requests)
        _serve(requests)
        os._exit(0)
    finally:  # it must not go on as pytest
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def _leave_pytest(requests: socket.socket) -> None:
    """Undoes what pytest and its plugins did to this process."""
    import faulthandler
    import logging
    import signal
    import threading
    import types

    os.closerange(3, requests.fileno())
    os.closerange(requests.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_pytest")]
    sys.modules["__main__"] = types.ModuleType("__main__")  # else processes of multiprocessing import pytest's
    logging.root.handlers.clear()


def _prepare() -> Path:
    """Imports, reads and remembers what every program needs; returns the folder of configurations."""
    gc.disable()
    import matplotlib.backends.backend_agg  # noqa: F401
    import rich.console
    import rich.table  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401
    from hydra import compose, initialize_config_dir
    from pictures import stop_drawing
    from quick_hydra import remember
    from stored_videos import store_videos

    import vidtrain.app.check
    import vidtrain.build.parts
    import vidtrain.evaluate
    import vidtrain.reports.plots
    import vidtrain.runs.export
    import vidtrain.runs.frozen_encoder
    import vidtrain.training.loop  # noqa: F401
    from vidtrain.config.targets import CONF, register_schemas

    torch.set_num_threads(1)  # threads do not survive a fork
    stop_drawing()
    remember()
    if "VIDTRAIN_TEST_VIDEOS" in os.environ:  # which pytest sets, but experiments/reliability does not
        store_videos()
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("train")  # what it read for that, every child remembers
    gc.freeze()  # children need not look at what stays for garbage, which also copies its memory
    gc.enable()
    return CONF


def _serve(requests: socket.socket) -> None:
    from hydra import compose, initialize_config_dir

    composed: dict[tuple[str, ...], Any] = {}
    conf: Path | None = None
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:  # the other end is closed
            gc.unfreeze()  # or libraries of C++ take what is left for leaks, and list them
            return
        if conf is None:  # now, as some runs of pytest start no program
            conf = _prepare()
        request = json.loads(message)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            requests.send(json.dumps(os.waitstatus_to_exitcode(status) if pid else None).encode())
            continue
        overrides = tuple(request["arguments"])
        if request["composed_for"] is not None and overrides not in composed:
            with initialize_config_dir(str(conf), version_base="1.3"):
                composed[overrides] = compose("train", [*overrides, "run_dir=to_come"])
        child = os.fork()
        if child == 0:
            requests.close()
            _live(request, composed[overrides] if overrides in composed else None, files)
        for file in files:
            os.close(file)
        requests.send(json.dumps(child).encode())


def _live(request: dict[str, Any], cfg: Any, files: list[int]) -> None:
    """Is the program from here on, and ends with its status."""
    import atexit
    import importlib
    import logging

    from vidtrain.errors import UserError

    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, *files)):
        os.dup2(file, number)
        os.close(file)
    # the server's own may be files, whose place a pipe does not have
    sys.stdin = os.fdopen(0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = ""  # as with python -m
    sys.argv = [f"vidtrain.{request['program']}", *request["arguments"]]
    try:
        program = importlib.import_module(f"vidtrain.{request['program']}")
        if request["composed_for"] is None:
            program.main()
        else:
            logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout, force=True)
            cfg.run_dir = request["composed_for"]
            program.train(cfg)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except UserError as error:  # what `launch` makes of it
        print(f"error: {error}", flush=True)
        status = 2
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if sys.path[0] != HERE:  # Python leaves it out where PYTHONSAFEPATH is set
        sys.path.insert(0, HERE)
    _serve(socket.socket(fileno=int(sys.argv[1])))
