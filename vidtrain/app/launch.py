"""Shared by all programs: composes and checks the configuration, runs the task, and reports a user's mistakes."""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.config.overrides import (
    explain_grammar,
    explain_sweep,
    first_of_sweep,
    flags_last,
    is_sweep,
    parsed,
    parses,
    positional_to_override,
    quoted,
    search_path,
)
from vidtrain.config.references import put_published, to_list
from vidtrain.config.renames import accept_old_keys, rename_arguments
from vidtrain.config.targets import CONF, is_group, label, options, reason, register_schemas, suggest, where
from vidtrain.errors import UserError
from vidtrain.files.atomic import FULL
from vidtrain.files.escaping import mask_streams, masked, shown_lines
from vidtrain.files.folders import install_hint
from vidtrain.runs.attempts import write_requeue_flag
from vidtrain.tracking.console import (
    STATUS_NO_READER,
    OneLineNames,
    redirect_to_null,
    stdout_reader_ended,
    take_every_character,
    use_utf8,
)
from vidtrain.training.process import launch_info

Config = TypeVar("Config")  # the schema's dataclass, or DictConfig
Task = Callable[[DictConfig], float | None]
Check = Callable[[DictConfig], list[tuple[str, str]]]  # faults of a configuration as (key, what is wrong)
Fault = tuple[str, str, str]  # (origin such as an override or a file, key, what is wrong)
# Override -> file that it comes from, for overrides that are not of the command line
Stored = Mapping[str, str]
NONE_STORED: Stored = MappingProxyType({})
EXIT_USER_ERROR = 2
FIRST_RANK_S = 5.0  # how long other ranks wait before they exit, so that rank 0 can print the faults first
OURS, LAUNCHER = "vidtrain.", "hydra/launcher"
# Exceptions of Hydra's composing that a user's mistake causes; a ValueError comes from a group that is set to null
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)


def launch(
    config_name: str,
    task: Callable[[Config], float | None],
    check: Callable[[Config], list[tuple[str, str]]],
    stored: Stored = NONE_STORED,
    bare_words_are: str | None = None,
) -> None:
    """Composes the configuration of the command line with Hydra, and runs `task` on it.

    Before anything starts, this prints all overrides that Hydra refuses or, without any, all faults that `check` finds.
    These, and a `UserError` from `task`, end the program with status 2 and without a traceback. `stored` holds
    overrides that are not from the command line. `bare_words_are` is the key of the list that arguments without = form.
    """
    # Hydra passes a DictConfig, whose attributes are those of the program's schema, `Config`
    run, find = cast(Task, task), cast(Check, check)
    use_utf8()
    take_every_character()
    mask_streams()
    register_schemas()
    use_own_plugins()
    accept_old_keys(config_name, warn)
    try:
        if bare_words_are is not None:  # Hydra itself accepts only overrides
            sys.argv[1:] = positional_to_override(sys.argv[1:], bare_words_are)
        sys.argv[1:] = rename_arguments(sys.argv[1:], config_name, warn)
        arguments = parsed(sys.argv[1:])
        overrides, folders = search_path(arguments.overrides, arguments.config_dir)
    except UserError as error:
        fail(str(error))
    sys.argv[1:] = flags_last(sys.argv[1:])
    name = arguments.config_name or config_name
    shows_info_only = arguments.hydra_help or arguments.info or arguments.shell_completion

    is_multirun = arguments.multirun or any(override.startswith("hydra.mode=") for override in arguments.overrides)
    # --config-path replaces conf/, so that only Hydra itself can compose
    is_composed_here = not shows_info_only and not arguments.config_path

    def job(cfg: DictConfig) -> float | None:
        # A single run is checked below, before Hydra composes it again. For a sweep only the first values are
        is_checked = is_composed_here and not is_multirun
        return _check_and_run(cfg, run, _check_nothing if is_checked else find, stored, folders)

    try:
        if is_composed_here:
            check_or_none = _check_nothing if arguments.cfg or arguments.help else find
            refused = [("a sweep", *fault) for fault in sweep_faults(arguments.overrides)] if is_multirun else []
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg, faults = _compose_and_check(name, overrides, check_or_none, stored, is_multirun, folders)
                report(refused + faults)
            if arguments.help:
                print(help_text(cfg), flush=True)
                return
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except BrokenPipeError:  # from output of Hydra itself, such as --info
        _end_without_reader()


def _check_nothing(cfg: DictConfig) -> list[tuple[str, str]]:
    return []


def _check_and_run(cfg: DictConfig, task: Task, check: Check, stored: Stored, folders: Sequence[Path]) -> float | None:
    """Checks the composed configuration, and runs `task`. A user's mistake ends the program without a traceback."""
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
            raise  # the sweeper records it, and continues with the other trials
        fail(str(error))
    except BrokenPipeError:
        _end_without_reader()
    except OSError as error:
        if error.errno not in FULL or is_trial(context):
            raise
        fail(f"cannot write {error.filename} ({error.strerror}): free some space, and start it again")
    except KeyboardInterrupt:
        fail("interrupted", status=130)


def help_text(cfg: DictConfig) -> str:
    """The program's help, from the template in conf/hydra/help. Hydra's own --help is slow, as it first reads every
    option of every group."""
    settings = _without_hydra(cfg)
    if "clip" in settings and "model" in settings:
        put_published(settings)
    return Template(cfg.hydra.help.template).safe_substitute(CONFIG=OmegaConf.to_yaml(settings))


def _without_hydra(cfg: DictConfig) -> DictConfig:
    """The program's own settings of a composed configuration."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _end_without_reader() -> NoReturn:
    """Ends the program if standard output has lost its reader, and raises the error again otherwise. Call it while a
    BrokenPipeError is handled."""
    if not stdout_reader_ended():
        raise
    redirect_to_null(sys.stdout)
    sys.exit(STATUS_NO_READER)


def warn(message: str) -> None:
    """Prints a warning on standard error; of is_multirun ranks only rank 0 does."""
    if launch_info().rank == 0:
        print(shown_lines(masked(f"warning: {message}")), file=sys.stderr, flush=True)


def fail(message: str, status: int = EXIT_USER_ERROR) -> NoReturn:
    """Prints an error and ends the program. SystemExit is the only exception whose status Hydra passes on."""
    print(shown_lines(masked(f"error: {message}")), file=sys.stderr, flush=True)
    sys.exit(status)


def report(faults: Sequence[Fault]) -> None:
    """Prints faults and ends the program, if there are any."""
    if faults and launch_info().rank:  # every rank finds the same faults, and rank 0 prints them
        # The launcher ends all ranks when one ends, so rank 0 needs time to print them
        time.sleep(FIRST_RANK_S)
        sys.exit(EXIT_USER_ERROR)
    if faults:
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        fail(f"{count} in the configuration; nothing was started\n  " + "\n  ".join(fault_lines(faults)))


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    return [f"{origin}: {key}: {why}" for origin, key, why in faults]


def find_faults(
    config_name: str,
    overrides: Sequence[str],
    check: Check,
    stored: Stored = NONE_STORED,
    sweeps: bool = True,
    folders: Sequence[Path] = (CONF,),
) -> list[Fault]:
    """The faults of all overrides that Hydra refuses or, if there are none, those that `check` finds.

    `sweeps` says whether overrides may hold is_multirun values, each for a run of its own. `folders` hold the options
    of groups: conf/, and folders of the user that `overrides` put on Hydra's search path.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return _compose_and_check(config_name, overrides, check, stored, sweeps, folders)[1]


def _compose_and_check(
    config_name: str, overrides: Sequence[str], check: Check, stored: Stored, sweeps: bool, folders: Sequence[Path]
) -> tuple[DictConfig, list[Fault]]:
    """The configuration with every override that Hydra accepts, including Hydra's own, and the faults as in
    `find_faults`."""
    cfg, kept, refused = _compose(config_name, overrides, folders)
    choices, settings = cfg.hydra.runtime.choices, _without_hydra(cfg)
    faults = [
        (f"override {label(override, stored)}", *_explain(override, settings, choices, error, folders))
        for override, error in refused
    ]
    if not sweeps:
        multiple = filter(is_sweep, overrides)
        faults += [(f"override {label(override, stored)}", *explain_sweep(override)) for override in multiple]
    if faults:  # report these without `check`, which imports torch and so takes seconds
        return cfg, faults
    return cfg, [(where(key, kept, choices, stored, folders), key, why) for key, why in check(settings)]


def _compose(
    config_name: str, overrides: Sequence[str], folders: Sequence[Path]
) -> tuple[DictConfig, list[str], list[tuple[str, Exception]]]:
    """The configuration with every override that Hydra accepts, these overrides, and the refused ones with Hydra's
    errors.

    The keys that an override may set depend on the options that other overrides choose. So refused overrides are tried
    again as long as another one is accepted.
    """
    try:
        kept = [first_of_sweep(override, folders) for override in overrides]
        return compose(config_name, kept, return_hydra_config=True), kept, []
    except COMPOSE_ERRORS:  # try one by one, to find the wrong ones
        kept, waiting = [], list(overrides)
    while True:
        refused: list[tuple[str, Exception]] = []
        for override in waiting:
            try:
                first = first_of_sweep(override, folders)
                compose(config_name, [*kept, first])
                kept.append(first)
            except COMPOSE_ERRORS as error:
                refused.append((override, error))
        if not refused or len(refused) == len(waiting):
            return compose(config_name, kept, return_hydra_config=True), kept, refused
        waiting = [override for override, _ in refused]


def _explain(
    override: str, cfg: DictConfig, choices: Mapping[str, str], error: Exception, folders: Sequence[Path]
) -> tuple[str, str]:
    """What is wrong with a refused override, as (key, reason), with a suggestion if a known name is similar."""
    key, equals, value = override.lstrip("+~").partition("=")
    if not key or not (equals or override.startswith("~")):
        path_keys = [name for name in ("checkpoint", "path") if name in cfg]
        if path_keys and Path(override).exists():
            return override, f"is a path without a key: write {quoted(path_keys[0], override)}"
        return override, f"is not an override: write key=value or group=option{suggest(override, list(cfg))}"
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
        chosen = [name.strip() for name in value.strip("[]").split(",")]  # one, or a list of is_multirun
        unknown = [name for name in chosen if name not in options(group, folders)]
        if not unknown:  # the option exists, so the error is inside it
            return key, _cause(error)
        return key, f"group {group} has no option {unknown[0]}{suggest(unknown[0], options(group, folders))}"
    node: Node | None = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            return key, _cause(error)
        if not isinstance(node, DictConfig) or part not in node:
            known_names = [str(name) for name in node] if isinstance(node, DictConfig) else []
            if depth == 0:
                known_names += _groups(choices)
            prefix = f"{'.'.join(parts[:depth])} has" if depth else "there is"
            return key, f"{prefix} no key {part}{suggest(part, sorted(set(known_names)))}"
        node = node._get_node(part)
    return key, _cause(error)


def _groups(choices: Mapping[str, str]) -> list[str]:
    """The config groups of a program, without Hydra's own."""
    return [group for group in choices if not group.startswith("hydra/")]


def _cause(error: Exception) -> str:
    """The first line of OmegaConf's message, if Hydra's error wraps one, else of Hydra's."""
    return str(error.__cause__ or error).splitlines()[0]


# --- vidtrain's sweepers and launchers ----------------------------------------------------------------------
#
# Hydra accepts only classes in packages hydra_plugins.*. With this, `hydra.sweeper._target_` and
# `hydra.launcher._target_` may also name classes of vidtrain: hydra/sweeper=grid and optuna, hydra/launcher=slurm and
# local.


def use_own_plugins() -> None:
    plugins = Plugins.instance()
    for kind in ("sweeper", "launcher"):
        setattr(plugins, f"instantiate_{kind}", partial(_instantiate, kind))
    # If hydra-optuna-sweeper is installed, Hydra would merge its schemas into our options of the same names
    for name in ("optuna.yaml", "sampler"):
        ConfigStore.instance().repo["hydra"]["sweeper"].pop(name, None)


def _instantiate(kind: str, **arguments: Any) -> Any:
    """Replaces a method of Hydra's `Plugins`, and calls it for all targets except vidtrain's.

    `kind` is sweeper or launcher; `arguments` are hydra_context, task_function and config."""
    node = arguments["config"].hydra[kind]
    if not node._target_.startswith(OURS):
        return getattr(Plugins, f"instantiate_{kind}")(Plugins.instance(), **arguments)
    try:
        plugin = instantiate(node, _recursive_=False)
    except InstantiationException as error:
        fail(f"hydra/{kind}: {reason(error)}")
    plugin.setup(**arguments)
    return plugin


def is_trial(context: HydraConf) -> bool:
    """Whether the running job is a trial of one of vidtrain's sweepers."""
    return context.mode == RunMode.MULTIRUN and context.sweeper._target_.startswith(OURS)


def sweep_faults(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Reasons why a sweep cannot be started from this process, as (key, what is wrong)."""
    faults = []
    info = launch_info()
    if info.world_size > 1:
        program = {"torchrun": "torchrun", "slurm": "srun"}[info.launcher]
        why = (
            f"{program} has started {info.world_size} processes, and each would start the whole sweep. Start it "
            f"without {program}: {LAUNCHER}=slurm or {LAUNCHER}=local gives each run its processes"
        )
        faults.append(("-m", why))
    launchers = [override.partition("=")[2] for override in overrides if override.startswith(f"{LAUNCHER}=")]
    launcher = launchers[-1] if launchers else None
    if launcher in ("slurm", "local") and (
        find_spec("submitit") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None
    ):
        faults.append((LAUNCHER, f"{launcher} needs submitit: {install_hint('slurm')}"))
    if launcher == "slurm" and shutil.which("sbatch") is None:
        why = f"there is no SLURM here (no sbatch): start the sweep on a login node, or {LAUNCHER}=local"
        faults.append((LAUNCHER, why))
    return faults
