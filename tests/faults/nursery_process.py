"""The process that fault_injection.Nursery talks to: it imports once, composes once, and forks a child for each run.

It reads a request a line, {"pid": ...} for a status or what a run needs, and answers with a line each.
"""

import json
import os
import sys
from typing import Any


def _serve() -> None:
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401
    from hydra import compose, initialize_config_dir

    import vidtrain.app.check
    import vidtrain.build.parts
    import vidtrain.features.frozen_encoder
    import vidtrain.reports.plots
    import vidtrain.runs.export
    import vidtrain.training.loop  # noqa: F401
    from vidtrain import train
    from vidtrain.config.targets import CONF, register_schemas

    torch.set_num_threads(1)  # threads do not survive a fork
    register_schemas()
    composed = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        overrides, run = tuple(request["overrides"]), request["run"]
        if not request["whole"] and overrides not in composed:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                composed[overrides] = compose("train", [*overrides, "run_dir=to_come"])
        out = os.open(request["said"], os.O_WRONLY)
        child = os.fork()
        if child == 0:
            arguments = [f"run_dir={run}", *overrides]
            cfg = None if request["whole"] else composed[overrides]
            _live(train, arguments, cfg, run, request["environment"], out)
        os.close(out)
        print(child, flush=True)


def _live(
    program: Any, arguments: list[str], cfg: Any, run: str, environment: dict[str, str], out: int
) -> None:
    import atexit
    import logging

    from vidtrain.errors import UserError

    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, source in enumerate((nothing, out, out)):
        os.dup2(source, number)
    sys.stdin = os.fdopen(0)  # the nursery's own holds what it has yet to read
    # the nursery's own may be files, whose place a pipe does not have
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(environment)
    sys.argv = ["vidtrain.train", *arguments]
    try:
        if cfg is None:
            program.main()
        else:
            logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout, force=True)
            cfg.run_dir = run
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
    _serve()
