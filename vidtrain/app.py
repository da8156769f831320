"""What every program shares: compose, check, run, and end with a clear word where the user must mend something."""

import difflib
import logging
import os
import re
import shlex
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

import hydra
from hydra import compose, initialize_config_dir

# The parser that hydra.main itself uses: the only way to tell Hydra's flags from overrides as it does
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.attempts import verdict
from vidtrain.config import CONF, label, options, register_schemas, suggest, where
from vidtrain.errors import UserError
from vidtrain.launcher_plugin import sweep_faults, use_own_launchers
from vidtrain.names import shown_lines
from vidtrain.references import as_said
from vidtrain.secrecy import mask_streams, masked
from vidtrain.sweep_plugin import is_trial, use_own_sweepers
from vidtrain.tracking.atomic import FULL
from vidtrain.tracking.streams import (
    STATUS_UNREAD,
    OneLineNames,
    silence,
    take_every_character,
    unread,
    use_utf8,
)
from vidtrain.training.rendezvous import find_place

Check = Callable[[DictConfig], list[tuple[str, str]]]  # faults of a configuration as (key, what is wrong)
Stored = Mapping[str, str]  # override -> the file that it is from, of those that were not given now
NONE_STORED: Stored = MappingProxyType({})
EXIT_USER_ERROR = 2
FIRST_RANK_S = 5.0  # by how much the first rank may be later than the others to find faults
# What composing raises for a user's mistake; ValueError is Hydra's word for a group that is set to null
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)


def launch(
    config_name: str,
    task: Callable[[DictConfig], float | None],
    check: Check,
    stored: Stored = NONE_STORED,
) -> None:
    """Runs `task` on the configuration that the command line composes, through Hydra.

    Overrides that do not compose and the faults that `check` finds are printed together, before anything is
    started. They, and a `UserError` from `task`, end the program with status 2 and without a traceback. `stored` says
    which overrides are not of this command line.
    """
    use_utf8()
    take_every_character()
    mask_streams()
    register_schemas()
    use_own_sweepers()
    use_own_launchers()
    try:
        arguments = parsed(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    sys.argv[1:] = flags_last(sys.argv[1:])
    only_asks = arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion
    own_folder = arguments.config_dir or arguments.config_path  # of the user: only Hydra knows how to read it
    if not only_asks and not own_folder:
        check_or_none = (lambda cfg: []) if arguments.cfg else check
        several = arguments.multirun or any(each.startswith("hydra.mode=") for each in arguments.overrides)
        name = arguments.config_name or config_name
        refused = [("a sweep", *fault) for fault in sweep_faults(arguments.overrides)] if several else []
        report(refused + find_faults(name, arguments.overrides, check_or_none, stored, sweeps=several))

    def job(cfg: DictConfig) -> float | None:
        words = logging.StreamHandler(sys.stdout)
        words.setFormatter(OneLineNames("%(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[words], force=True)
        logging.getLogger("vidtrain").setLevel(logging.INFO)
        context = HydraConfig.get()
        overrides, choices = as_said(context.overrides.task), context.runtime.choices
        try:
            with verdict():
                faults = [(where(key, overrides, choices, stored), key, why) for key, why in check(cfg)]
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

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except BrokenPipeError:  # of what Hydra itself prints, such as the help
        _end_if_unread()


def _end_if_unread() -> None:
    """Ends the program where a pipe is broken because nobody reads standard output; raises what it handles else."""
    if not unread():
        raise
    silence(sys.stdout)
    sys.exit(STATUS_UNREAD)


def overrides_in(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line that are neither flags nor what belongs to one."""
    return parsed(arguments).overrides


def flags_last(arguments: Sequence[str]) -> list[str]:
    """The same command line as Hydra takes it: its parser refuses overrides on both sides of a flag."""
    overrides = overrides_in(arguments)
    left, flags = Counter(overrides), []
    for each in arguments:
        if left[each]:
            left[each] -= 1
        else:
            flags.append(each)
    return [*overrides, *flags]


def parsed(arguments: Sequence[str]) -> Namespace:
    """Hydra's flags and, as `overrides`, all else, in whatever order. Raises `UserError` for other flags."""
    parser = get_args_parser()
    parser.error = _refuse_flags
    found, strange = parser.parse_known_intermixed_args(list(arguments))
    flags = [each for each in strange if each.startswith("-")]
    if flags:
        text = flags[0].lstrip("-")
        every = [each for action in parser._actions for each in action.option_strings]
        known = [each[2:] for each in every if each.startswith("--")]
        near = difflib.get_close_matches(text, known, n=1)
        written = text if "=" in text else f"{text or 'key'}=VALUE"
        hint = f"did you mean --{near[0]}?" if near else f"settings are written without dashes: {written}"
        _refuse_flags(f"there is no flag {flags[0]}; {hint}")
    return found


def _refuse_flags(why: str) -> NoReturn:
    raise UserError(f"the command line cannot be read: {why}")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fail(message: str, status: int = EXIT_USER_ERROR) -> None:
    """Ends the program: SystemExit is the one exception that Hydra lets through with its status."""
    print(shown_lines(masked(f"error: {message}")), file=sys.stderr, flush=True)
    sys.exit(status)


def report(faults: Sequence[tuple[str, str, str]]) -> None:
    """Prints faults as (where, key, what is wrong) and ends the program, if there are any."""
    if faults and find_place().rank:  # every rank finds the same ones, and the first prints them
        time.sleep(FIRST_RANK_S)  # whoever started the ranks ends all when one has ended: not before it has
        sys.exit(EXIT_USER_ERROR)
    if faults:
        fail(describe(faults))


def describe(faults: Sequence[tuple[str, str, str]]) -> str:
    """Faults as (where, key, what is wrong) in words."""
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"{count} in the configuration; nothing was started\n  " + "\n  ".join(fault_lines(faults))


def fault_lines(faults: Sequence[tuple[str, str, str]]) -> list[str]:
    return [f"{place}: {key}: {why}" for place, key, why in faults]


def find_faults(
    config_name: str,
    overrides: Sequence[str],
    check: Check,
    stored: Stored = NONE_STORED,
    sweeps: bool = True,
) -> list[tuple[str, str, str]]:
    """Faults (where, key, what) of overrides that do not compose, then of the rest composed without them.

    `sweeps` says whether overrides may hold several values, for a run of each.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        refused = []
        try:
            kept = [_first_of_sweep(override) for override in overrides]
            cfg = compose(config_name, kept, return_hydra_config=True)
        except REFUSALS:
            cfg, kept, refused = _compose_what_can_be(config_name, overrides)
        choices = cfg.hydra.runtime.choices
        mine = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        faults = [
            (f"override {label(each, stored)}", *_explain(each, mine, choices, error))
            for each, error in refused
        ]
        if not sweeps:
            several = [each for each in overrides if _is_sweep(each)]
            faults += [(f"override {label(each, stored)}", *_explain_sweep(each)) for each in several]
        return faults + [(where(key, kept, choices, stored), key, why) for key, why in check(mine)]


def _first_of_sweep(override: str) -> str:
    """The first value of an override that a multirun would sweep over; others as they are."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    if parsed.is_interval_sweep():
        return f"{parsed.get_key_element()}={parsed.value().start}"
    values = (
        parsed.value().filter(options(parsed.key_or_group))
        if isinstance(parsed.value(), Glob)
        else parsed.sweep_string_iterator()
    )
    return f"{parsed.get_key_element()}={next(iter(values))}"


def _compose_what_can_be(
    config_name: str, overrides: Sequence[str]
) -> tuple[DictConfig, list[str], list[tuple[str, Exception]]]:
    """The configuration with every override that composes, those, and the others with their errors.

    What one override may set depends on what others chose, so those refused are tried again as long as that
    lets another one in.
    """
    kept: list[str] = []
    waiting = list(overrides)
    while True:
        refused = []
        for override in waiting:
            try:
                compose(config_name, [*kept, _first_of_sweep(override)])
                kept.append(_first_of_sweep(override))
            except REFUSALS as error:
                refused.append((override, error))
        if not refused or len(refused) == len(waiting):
            return compose(config_name, kept, return_hydra_config=True), kept, refused
        waiting = [override for override, _ in refused]


def _explain(override: str, cfg: DictConfig, choices: Mapping[str, str], error: Exception) -> tuple[str, str]:
    """What is wrong with a refused override, as (key, why), with a suggestion where a name is near."""
    key, equals, value = override.lstrip("+~").partition("=")
    if not key or not (equals or override.startswith("~")):
        return override, f"is no override: write key=value or group=option{suggest(override, list(cfg))}"
    if not _parses(override):
        return key, _explain_grammar(key, value)
    folder = CONF / key.replace("@", "/").split("/")[0]
    if folder.is_dir() and "." not in key:
        group = key.split("@")[0]
        if group not in choices and not override.startswith("+"):
            return key, f"this program takes no group {group}{suggest(group, _groups(choices))}"
        if group.startswith("hydra/"):
            return key, _cause(error)
        if not (CONF / group).is_dir():
            return key, f"there is no group {group}"
        chosen = [each.strip() for each in value.strip("[]").split(",")]  # one, or a list of several
        unknown = [each for each in chosen if not (CONF / group / f"{each}.yaml").is_file()]
        if not unknown:  # they are there, and what they ask for is at fault
            return key, _cause(error)
        return key, f"group {group} has no option {unknown[0]}{suggest(unknown[0], options(group))}"
    node = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            return key, _cause(error)
        if not isinstance(node, DictConfig) or part not in node:
            known = [str(each) for each in node] if isinstance(node, DictConfig) else []
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


# --- the grammar of overrides -----------------------------------------------------------------------------


def quoted(key: str, value: object) -> str:
    """`key=value` as it is written in a shell, in quotes where Hydra or the shell would else take it for more."""
    text = "null" if value is None else str(value)
    override = f"{key}={text}"
    if isinstance(value, str) and not (_parses(override) and _value(override) == value):
        # Hydra takes a backslash for itself only before a quote or the end
        text = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', r"\""), text)
        override = f'{key}="{text}"'
    return shlex.quote(override)


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _value(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


def _is_sweep(override: str) -> bool:
    return _parses(override) and OverridesParser.create().parse_override(override).is_sweep_override()


def _explain_sweep(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, (
        f"several values, {value}: for a run of each add -m, for a list write {shlex.quote(f'{key}=[{value}]')}, "
        f"for one text write {quoted(key, value)}"
    )


def _explain_grammar(key: str, value: str) -> str:
    """Which characters of a value Hydra takes for its grammar, and how to write it so that it does not."""
    if not value or not _parses(f"{key}=1"):
        return f"{key!r} is no name of a key, nor of a group"
    strange = [each for each in dict.fromkeys(value) if not _stands_for_itself(each)]
    named = " and ".join(strange) or value[0]
    unclosed = " is a bracket or a quote not closed?" if value[0] in "[{\"'" else ""
    return (
        f"Hydra cannot read '{value}':{unclosed} {named} means something else to it; to say just that text, write "
        f"{quoted(key, value)}"
    )


def _stands_for_itself(character: str) -> bool:
    override = f"key=a{character}a"
    return _parses(override) and _value(override) == f"a{character}a"
