"""Looks at a sweep, live if wanted, and submits what is missing of it.

python -m vidtrain.sweep status multirun/motion/NAME watch=true
python -m vidtrain.sweep resume multirun/motion/NAME
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vidtrain.app.launch import fail, launch, warn
from vidtrain.config.command_line import bare_words
from vidtrain.config.overrides import in_quotes
from vidtrain.config.renames import rename_arguments
from vidtrain.config.schemas import SweepConfig
from vidtrain.config.targets import suggest
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_lines
from vidtrain.tracking.console import use_utf8

if TYPE_CHECKING:  # --help should not wait for them
    from rich.console import Group

ACTIONS = ("status", "resume")
LEAST_SECONDS = 0.2


def with_words(arguments: Sequence[str]) -> list[str]:
    """The command line with its bare words, `status DIR`, as overrides, which are all that Hydra takes.

    Raises `UserError` for more words than those two.
    """
    bare, rest = bare_words(arguments)
    if len(bare) > 2:
        raise UserError(f"{shlex.join(bare)}: one of {' or '.join(ACTIONS)}, and the folder of one sweep")
    words = dict(zip(("action", "folder"), bare, strict=False))
    return [*rest, *(f"{key}={in_quotes(value)}" for key, value in words.items())]


def check(cfg: SweepConfig) -> list[tuple[str, str]]:
    faults = []
    if cfg.action not in ACTIONS:
        said = "must be given: python -m vidtrain.sweep status DIR, or resume DIR"
        faults.append(
            (
                "action",
                said if cfg.action is None else f"{cfg.action} is unknown{suggest(cfg.action, ACTIONS)}",
            )
        )
    if cfg.folder is None:
        faults.append(("folder", "must be given: the folder of a sweep, such as multirun/motion/NAME"))
    if cfg.interval < LEAST_SECONDS:
        faults.append(("interval", f"{cfg.interval} must be {LEAST_SECONDS} seconds or more"))
    return faults


def status(cfg: SweepConfig) -> None:
    """Prints the table of a sweep's trials; with watch=true on a terminal, again and again until all have ended."""
    from rich.console import Console
    from rich.live import Live

    from vidtrain.sweeps.record import SweepRecord
    from vidtrain.sweeps.status import ENDED, slurm_jobs, states_of, table_of
    from vidtrain.tracking.console import make_console

    folder = Path(cfg.folder).absolute()

    def look() -> tuple[bool, tuple]:
        record = SweepRecord.read(folder)
        states = states_of(folder, record, slurm_jobs(folder))
        over = len(states) >= record.planned and all(each.state in ENDED for each in states)
        return over, table_of(folder, record, states)

    out = Console()
    if not cfg.watch or not out.is_terminal:
        _, (title, columns, rows, below) = look()
        console = make_console(is_main=True)
        console.table(title, columns, rows)
        for line in below:
            console.info(line)
        return
    with Live(console=out, auto_refresh=False) as live:
        while True:
            over, found = look()
            live.update(_drawn(*found), refresh=True)
            if over:
                return
            time.sleep(cfg.interval)


def _drawn(title: str, columns: Sequence[str], rows: Sequence[Sequence], below: Sequence[str]) -> "Group":
    from rich.console import Group
    from rich.text import Text

    from vidtrain.tracking.console import make_table

    return Group(make_table(title, columns, rows), *(Text(shown_lines(line)) for line in below))


def resume_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of vidtrain.train that goes on with a sweep: the stored one, then what this command line adds.

    `retry=true` runs those again that failed. Goes to the folder that the sweep was started in, as paths are relative
    to it. Raises `UserError` for a folder that holds no sweep, and for what it must not bring along by itself.
    """
    from vidtrain.config.stored_overrides import check_stored
    from vidtrain.runs.folder import check_whole
    from vidtrain.sweeps.record import SWEEP, SweepRecord

    said = dict(each.partition("=")[::2] for each in arguments if each.startswith(("folder=", "retry=")))
    if "folder" not in said:
        raise UserError("resume what? python -m vidtrain.sweep resume DIR, the folder of a sweep")
    if "retry" in said and said["retry"] not in ("true", "false"):
        raise UserError(f"retry={said['retry']}: true or false")
    folder = Path(_bare(said["folder"])).absolute()
    record = SweepRecord.read(folder)
    if not Path(record.started_in).is_dir():
        raise UserError(
            f"the sweep in {folder} was started in {record.started_in}, which is not there; make it, or correct "
            f"started_in in {folder / 'sweep.json'}"
        )
    if Path(record.started_in).resolve() != Path.cwd():
        print(shown_lines(f"going to {record.started_in}, where the sweep was started"), flush=True)
        os.chdir(record.started_in)
        # the processes that training starts would else import what lies there, and the record may be from elsewhere
        os.environ["PYTHONSAFEPATH"] = "1"
        paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    mine = ("action=", "folder=", "retry=", "interval=", "watch=", "hydra.sweep.dir=", "hydra.mode=")
    now = [each for each in arguments if not each.startswith(mine) and each not in ("-m", "--multirun")]
    if "retry" in said:
        now.append(f"hydra.sweeper.retry={said['retry']}")
    keys = {each.lstrip("+~").partition("=")[0] for each in now}
    source, command = (
        str(folder / "sweep.json"),
        f"python -m vidtrain.sweep resume {shlex.quote(str(folder))}",
    )
    stored = [
        each
        for each in [*record.hydra, *record.task]
        if each.lstrip("+~").partition("=")[0] not in {*keys, "hydra.sweep.dir", "hydra.sweeper.retry"}
        # another launcher has other settings
        and not ("hydra/launcher" in keys and each.lstrip("+~").startswith("hydra.launcher."))
    ]
    check_whole(stored, str(folder / SWEEP))
    check_stored(stored, source, command, hydra=True)
    return ["-m", *stored, *now, f"hydra.sweep.dir={in_quotes(str(folder))}"]


def _bare(text: str) -> str:
    return text[1:-1].replace("\\'", "'").replace("\\\\", "\\") if text.startswith("'") else text


def main() -> None:
    use_utf8()  # before the folder changes, which the command line names files from
    try:
        arguments = rename_arguments(with_words(sys.argv[1:]), "train", warn)
        resumes = "action='resume'" in arguments or "action=resume" in arguments
        if resumes and not any(each in ("-h", "--help") for each in arguments):
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
