"""What every program shares: compose, check, run, and end with a clear word where the user must mend something."""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import NoReturn, TypeVar, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.app.plugins import is_trial, sweep_faults, use_own_plugins
from vidtrain.config.overrides import (
    explain_grammar,
    explain_sweep,
    first_of_sweep,
    flags_last,
    is_sweep,
    parsed,
    parses,
    positional_to_override,
    search_path,
)
from vidtrain.config.references import put_published, to_list
from vidtrain.config.renames import accept_old_keys, rename_arguments
from vidtrain.config.targets import CONF, is_group, label, options, register_schemas, suggest, where
from vidtrain.errors import UserError
from vidtrain.files.atomic import FULL
from vidtrain.files.escaping import mask_streams, masked, shown_lines
from vidtrain.runs.attempts import write_requeue_flag
from vidtrain.tracking.console import (
    STATUS_UNREAD,
    OneLineNames,
    silence,
    take_every_character,
    unread,
    use_utf8,
)
from vidtrain.training.ranks.rendezvous import find_place

Config = TypeVar("Config")  # the schema's dataclass, or DictConfig
Task = Callable[[DictConfig], float | None]
Check = Callable[[DictConfig], list[tuple[str, str]]]  # faults of a configuration as (key, what is wrong)
Fault = tuple[str, str, str]  # where, key, what is wrong
Stored = Mapping[str, str]  # override -> the file that it is from, of those that were not given now
NONE_STORED: Stored = MappingProxyType({})
EXIT_USER_ERROR = 2
FIRST_RANK_S = 5.0  # by how much the first rank may be later than the others to find faults
# What composing raises for a user's mistake; ValueError is Hydra's word for a group that is set to null
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)


def launch(
    config_name: str,
    task: Callable[[Config], float | None],
    check: Callable[[Config], list[tuple[str, str]]],
    stored: Stored = NONE_STORED,
    bare_words_are: str | None = None,
) -> None:
    """Runs `task` on the configuration that the command line composes, through Hydra.

    Overrides that do not compose are printed together before anything is started; where all do, the faults that
    `check` finds are. They, and a `UserError` from `task`, end the program with status 2 and without a traceback.
    `stored` says which overrides are not of this command line, and `bare_words_are` which list its bare words make up.
    """
    # Hydra passes a DictConfig, whose attributes are those of the schema that the program names
    run, find = cast(Task, task), cast(Check, check)
    use_utf8()
    take_every_character()
    mask_streams()
    register_schemas()
    use_own_plugins()
    accept_old_keys(config_name, warn)
    try:
        if bare_words_are is not None:  # Hydra takes only overrides
            sys.argv[1:] = positional_to_override(sys.argv[1:], bare_words_are)
        sys.argv[1:] = rename_arguments(sys.argv[1:], config_name, warn)
        arguments = parsed(sys.argv[1:])
        overrides, folders = search_path(arguments.overrides, arguments.config_dir)
    except UserError as error:
        fail(str(error))
    sys.argv[1:] = flags_last(sys.argv[1:])
    name = arguments.config_name or config_name
    only_asks = arguments.hydra_help or arguments.info or arguments.shell_completion

    several = arguments.multirun or any(
        override.startswith("hydra.mode=") for override in arguments.overrides
    )
    # --config-path puts another folder in place of conf/, and only Hydra knows what it means by it
    composes_here = not only_asks and not arguments.config_path

    def job(cfg: DictConfig) -> float | None:
        # a single run was checked before Hydra composed it once more; of a sweep only the first values were
        is_checked = composes_here and not several
        return _check_and_run(cfg, run, _find_none if is_checked else find, stored, folders)

    try:
        if composes_here:
            check_or_none = _find_none if arguments.cfg or arguments.help else find
            refused = [("a sweep", *fault) for fault in sweep_faults(arguments.overrides)] if several else []
            with initialize_config_dir(str(CONF), version_base="1.3"):
                composed = _compose(name, overrides, folders)
                report(refused + _faults_of(composed, overrides, check_or_none, stored, several, folders))
            if arguments.help:
                print(help_text(composed.cfg), flush=True)
                return
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except BrokenPipeError:  # of what Hydra itself prints, such as --info
        _end_if_unread()


def _find_none(cfg: DictConfig) -> list[tuple[str, str]]:
    return []


def _check_and_run(
    cfg: DictConfig, task: Task, check: Check, stored: Stored, folders: Sequence[Path]
) -> float | None:
    """Checks what Hydra composed and runs `task` on it; mistakes of the user end the program without a traceback."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLineNames("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("vidtrain").setLevel(logging.INFO)
    context = HydraConfig.get()
    overrides, choices = to_list(context.overrides.task), context.runtime.choices
    try:
        with write_requeue_flag():
            faults = [(where(key, overrides, choices, stored, folders), key, why) for key, why in check(cfg)]
            if faults and is_trial(context):
                raise UserError("\n".join(fault_lines(faults)))
            report(faults)
            return task(cfg)
    except UserError as error:
        if is_trial(context):
            raise  # the sweeper records it, and goes on with the others
        fail(str(error))
    except BrokenPipeError:
        _end_if_unread()
    except OSError as error:
        if error.errno not in FULL or is_trial(context):
            raise
        fail(f"cannot write {error.filename} ({error.strerror}): free some space, and start it again")
    except KeyboardInterrupt:
        fail("interrupted", status=130)


def help_text(cfg: DictConfig) -> str:
    """The program's help, as conf/hydra/help has it: Hydra would read every option of every group for it first."""
    settings = _without_hydra(cfg)
    if "clip" in settings and "model" in settings:
        put_published(settings)
    return Template(cfg.hydra.help.template).safe_substitute(CONFIG=OmegaConf.to_yaml(settings))


def _without_hydra(cfg: DictConfig) -> DictConfig:
    """The program's own settings of a composed configuration."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _end_if_unread() -> NoReturn:
    """Ends the program where a pipe is broken because nobody reads standard output; raises what it handles else."""
    if not unread():
        raise
    silence(sys.stdout)
    sys.exit(STATUS_UNREAD)


def warn(message: str) -> None:
    """Says on standard error what does not keep the program from running; of several ranks the first one does."""
    if find_place().rank == 0:
        print(shown_lines(masked(f"warning: {message}")), file=sys.stderr, flush=True)


def fail(message: str, status: int = EXIT_USER_ERROR) -> NoReturn:
    """Ends the program: SystemExit is the one exception that Hydra lets through with its status."""
    print(shown_lines(masked(f"error: {message}")), file=sys.stderr, flush=True)
    sys.exit(status)


def report(faults: Sequence[Fault]) -> None:
    """Prints faults and ends the program, if there are any."""
    if faults and find_place().rank:  # every rank finds the same ones, and the first prints them
        time.sleep(
            FIRST_RANK_S
        )  # a launcher ends all ranks when one has ended: the first must have printed them
        sys.exit(EXIT_USER_ERROR)
    if faults:
        fail(describe(faults))


def describe(faults: Sequence[Fault]) -> str:
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"{count} in the configuration; nothing was started\n  " + "\n  ".join(fault_lines(faults))


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    return [f"{place}: {key}: {why}" for place, key, why in faults]


@dataclass(frozen=True)
class _Composed:
    """What composes: a configuration, Hydra's own included, the overrides in it, and the others with their errors."""

    cfg: DictConfig
    kept: list[str]
    refused: list[tuple[str, Exception]]


def find_faults(
    config_name: str,
    overrides: Sequence[str],
    check: Check,
    stored: Stored = NONE_STORED,
    sweeps: bool = True,
    folders: Sequence[Path] = (CONF,),
) -> list[Fault]:
    """Faults of all overrides that do not compose; where all do, those that `check` finds.

    `sweeps` says whether overrides may hold several values, for a run of each. `folders` are those that hold options:
    conf/, and those of the user that `overrides` put on Hydra's search path.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = _compose(config_name, overrides, folders)
        return _faults_of(composed, overrides, check, stored, sweeps, folders)


def _faults_of(
    composed: _Composed,
    overrides: Sequence[str],
    check: Check,
    stored: Stored,
    sweeps: bool,
    folders: Sequence[Path],
) -> list[Fault]:
    choices, settings = composed.cfg.hydra.runtime.choices, _without_hydra(composed.cfg)
    faults = [
        (f"override {label(override, stored)}", *_explain(override, settings, choices, error, folders))
        for override, error in composed.refused
    ]
    if not sweeps:
        several = filter(is_sweep, overrides)
        faults += [(f"override {label(override, stored)}", *explain_sweep(override)) for override in several]
    if faults:  # they are answered at once: `check` imports torch, which takes seconds
        return faults
    return [(where(key, composed.kept, choices, stored, folders), key, why) for key, why in check(settings)]


def _compose(config_name: str, overrides: Sequence[str], folders: Sequence[Path]) -> _Composed:
    """The configuration with every override that composes.

    What one override may set depends on what others chose, so those refused are tried again as long as that
    lets another one in.
    """
    try:
        kept = [first_of_sweep(override, folders) for override in overrides]
        return _Composed(compose(config_name, kept, return_hydra_config=True), kept, [])
    except REFUSALS:  # one by one, to see which
        kept, waiting = [], list(overrides)
    while True:
        refused: list[tuple[str, Exception]] = []
        for override in waiting:
            try:
                first = first_of_sweep(override, folders)
                compose(config_name, [*kept, first])
                kept.append(first)
            except REFUSALS as error:
                refused.append((override, error))
        if not refused or len(refused) == len(waiting):
            return _Composed(compose(config_name, kept, return_hydra_config=True), kept, refused)
        waiting = [override for override, _ in refused]


def _explain(
    override: str,
    cfg: DictConfig,
    choices: Mapping[str, str],
    error: Exception,
    folders: Sequence[Path],
) -> tuple[str, str]:
    """What is wrong with a refused override, as (key, why), with a suggestion where a name is near."""
    key, equals, value = override.lstrip("+~").partition("=")
    if not key or not (equals or override.startswith("~")):
        return override, f"is no override: write key=value or group=option{suggest(override, list(cfg))}"
    if not parses(override):
        return key, explain_grammar(key, value)
    if "." not in key and is_group(key.replace("@", "/").split("/")[0], folders):
        group = key.split("@")[0]
        if group not in choices and not override.startswith("+"):
            return key, f"this program takes no group {group}{suggest(group, _groups(choices))}"
        if group.startswith("hydra/"):
            return key, _cause(error)
        if not is_group(group, folders):
            return key, f"there is no group {group}"
        chosen = [name.strip() for name in value.strip("[]").split(",")]  # one, or a list of several
        unknown = [name for name in chosen if name not in options(group, folders)]
        if not unknown:  # they are there, and what they ask for is at fault
            return key, _cause(error)
        return key, f"group {group} has no option {unknown[0]}{suggest(unknown[0], options(group, folders))}"
    node: Node | None = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            return key, _cause(error)
        if not isinstance(node, DictConfig) or part not in node:
            known = [str(name) for name in node] if isinstance(node, DictConfig) else []
            if depth == 0:
                known += _groups(choices)
            inside = f"{'.'.join(parts[:depth])} has" if depth else "there is"
            return key, f"{inside} no key {part}{suggest(part, sorted(set(known)))}"
        node = node._get_node(part)
    return key, _cause(error)


def _groups(choices: Mapping[str, str]) -> list[str]:
    """The groups that a program takes, without Hydra's own."""
    return [group for group in choices if not group.startswith("hydra/")]


def _cause(error: Exception) -> str:
    """OmegaConf's own words, from inside Hydra's."""
    return str(error.__cause__ or error).splitlines()[0]
