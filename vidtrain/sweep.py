"""Shows the state of a sweep, live with watch=true, and resumes it.

python -m vidtrain.sweep status multirun/motion/NAME watch=true
python -m vidtrain.sweep resume multirun/motion/NAME
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from vidtrain.app.launch import fail, launch, warn
from vidtrain.config.overrides import check_stored, in_quotes, unquoted, words_to_overrides
from vidtrain.config.renames import rename_arguments
from vidtrain.config.schemas import SweepConfig
from vidtrain.config.targets import check_settings
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_lines
from vidtrain.tracking.console import use_utf8

NOT_FOR_TRAINING = ("-m", "--multirun", "action=", "folder=", "retry=", "interval=", "watch=", "hydra.sweep.dir=",
                   "hydra.mode=")  # fmt: skip


def check(cfg: SweepConfig) -> list[tuple[str, str]]:
    faults = check_settings(cfg, SweepConfig)
    if cfg.action is None:
        faults.append(("action", "must be given: python -m vidtrain.sweep status DIR, or resume DIR"))
    if cfg.folder is None:
        faults.append(("folder", "must be given: the folder of a sweep, such as multirun/motion/NAME"))
    return faults


def status(cfg: SweepConfig) -> None:
    """Prints the table of a sweep's trials; with watch=true on a terminal, again and again until all have ended."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from vidtrain.sweeps.base import slurm_jobs
    from vidtrain.sweeps.record import ENDED, SweepRecord, states_of, table_of
    from vidtrain.tracking.console import make_console, make_table

    assert cfg.folder is not None  # see check
    folder, console, terminal = Path(cfg.folder).absolute(), make_console(is_main=True), Console()
    watches = cfg.watch and terminal.is_terminal
    with Live(console=terminal, auto_refresh=False) if watches else nullcontext() as live:
        while True:
            record = SweepRecord.read(folder)
            states = states_of(folder, record, slurm_jobs(folder))
            title, columns, rows, below = table_of(folder, record, states)
            if live is None:
                console.table(title, columns, rows)
                for line in below:
                    console.info(line)
                return
            lines = (Text(shown_lines(line)) for line in below)
            live.update(Group(make_table(title, columns, rows), *lines), refresh=True)
            if len(states) >= record.planned and all(state.state in ENDED for state in states):
                return
            time.sleep(cfg.interval)


def resume_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of vidtrain.train that resumes a sweep: the stored one, and then the overrides of this one.

    `retry=true` runs failed trials again. Changes into the folder in which the sweep was started, as paths are relative
    to it. Raises `UserError` for a folder without a sweep, and for stored overrides that could do harm.
    """
    from vidtrain.runs.folder import check_whole
    from vidtrain.sweeps.record import SWEEP, SweepRecord

    options = dict(text.partition("=")[::2] for text in arguments if text.startswith(("folder=", "retry=")))
    if "folder" not in options:
        raise UserError("name the folder of a sweep: python -m vidtrain.sweep resume DIR")
    if "retry" in options and options["retry"] not in ("true", "false"):
        raise UserError(f"retry={options['retry']}: true or false")
    folder = Path(unquoted(options["folder"])).absolute()
    record = SweepRecord.read(folder)
    _go_to(record.started_in, folder / SWEEP)
    overrides = [override for override in arguments if not override.startswith(NOT_FOR_TRAINING)]
    if "retry" in options:
        overrides.append(f"hydra.sweeper.retry={options['retry']}")
    replaced = {override.lstrip("+~").partition("=")[0] for override in overrides}
    replaced |= {"hydra.sweep.dir", "hydra.sweeper.retry"}
    stored = [
        override
        for override in [*record.hydra, *record.task]
        if override.lstrip("+~").partition("=")[0] not in replaced
        # with another launcher, settings of the stored one are dropped
        and not ("hydra/launcher" in replaced and override.lstrip("+~").startswith("hydra.launcher."))
    ]
    check_whole(stored, str(folder / SWEEP))
    command = f"python -m vidtrain.sweep resume {shlex.quote(str(folder))}"
    check_stored(stored, str(folder / SWEEP), command, hydra=True)
    return ["-m", *stored, *overrides, f"hydra.sweep.dir={in_quotes(str(folder))}"]


def _go_to(folder: str, source: Path) -> None:
    """Changes into the folder in which a sweep was started, according to its record `source`."""
    if not Path(folder).is_dir():
        raise UserError(
            f"the sweep in {source.parent} was started in {folder}, which does not exist; create it, or correct "
            f"started_in in {source}"
        )
    if Path(folder).resolve() != Path.cwd():
        print(shown_lines(f"going to {folder}, where the sweep was started"), flush=True)
        os.chdir(folder)
        # Child processes must not import modules from that folder, as somebody else may have written the record
        os.environ["PYTHONSAFEPATH"] = "1"
        paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def main() -> None:
    use_utf8()  # before the folder changes: it restarts the program, whose command line has relative paths
    try:
        expected = "one of status or resume, and the folder of one sweep"
        arguments = words_to_overrides(sys.argv[1:], ("action", "folder"), expected)
        arguments = rename_arguments(arguments, "train", warn)
        resumes = "action='resume'" in arguments or "action=resume" in arguments
        if resumes and not any(argument in ("-h", "--help") for argument in arguments):
            arguments = resume_arguments(arguments)
    except UserError as error:
        fail(str(error))
    sys.argv[1:] = arguments
    if arguments[:1] == ["-m"]:
        from vidtrain.train import main as train

        train()
    else:
        launch("sweep", status, check)


if __name__ == "__main__":
    main()
