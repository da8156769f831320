"""What every program shares: compose, check, run, and end with a clear word where the user must mend something."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra import compose, initialize_config_dir

# The parser that hydra.main itself uses: the only way to tell Hydra's flags from overrides as it does
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.config import CONF, register_schemas, suggest, where
from vidtrain.errors import UserError

Check = Callable[[DictConfig], list[tuple[str, str]]]  # faults of a configuration as (key, what is wrong)
EXIT_USER_ERROR = 2
# What composing raises for a user's mistake; ValueError is Hydra's word for a group that is set to null
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)


def launch(config_name: str, task: Callable[[DictConfig], float | None], check: Check) -> None:
    """Runs `task` on the configuration that the command line composes, through Hydra.

    Overrides that do not compose and the faults that `check` finds are printed together, before anything is
    started. They, and a `UserError` from `task`, end the program with status 2 and without a traceback.
    """
    register_schemas()
    arguments = get_args_parser().parse_args()
    only_asks = arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion
    own_folder = arguments.config_dir or arguments.config_path  # of the user: only Hydra knows how to read it
    if not only_asks and not own_folder:
        check_or_none = (lambda cfg: []) if arguments.cfg else check
        report(find_faults(arguments.config_name or config_name, arguments.overrides, check_or_none))

    def job(cfg: DictConfig) -> float | None:
        logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout, force=True)
        logging.getLogger("vidtrain").setLevel(logging.INFO)
        context = HydraConfig.get()
        overrides, choices = context.overrides.task, context.runtime.choices
        try:
            report([(where(key, overrides, choices), key, why) for key, why in check(cfg)])
            return task(cfg)
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted", status=130)

    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fail(message: str, status: int = EXIT_USER_ERROR) -> None:
    """Ends the program: SystemExit is the one exception that Hydra lets through with its status."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)


def report(faults: Sequence[tuple[str, str, str]]) -> None:
    """Prints faults as (where, key, what is wrong) and ends the program, if there are any."""
    if faults and "RANK" in os.environ and os.environ["RANK"] != "0":
        sys.exit(EXIT_USER_ERROR)  # every rank finds the same ones, and the first prints them
    if faults:
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [f"{place}: {key}: {why}" for place, key, why in faults]
        fail(f"{count} in the configuration; nothing was started\n  " + "\n  ".join(lines))


def find_faults(config_name: str, overrides: Sequence[str], check: Check) -> list[tuple[str, str, str]]:
    """Faults (where, key, what) of overrides that do not compose, then of the rest composed without them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        refused = []
        try:
            kept = [_first_of_sweep(override) for override in overrides]
            cfg = compose(config_name, kept, return_hydra_config=True)
        except REFUSALS:
            cfg, kept, refused = _compose_what_can_be(config_name, overrides)
        choices = cfg.hydra.runtime.choices
        mine = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        faults = [(f"override {each!r}", *_explain(each, mine, error)) for each, error in refused]
        return faults + [(where(key, kept, choices), key, why) for key, why in check(mine)]


def _first_of_sweep(override: str) -> str:
    """The first value of an override that a multirun would sweep over; others as they are."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    if parsed.is_interval_sweep():
        return f"{parsed.get_key_element()}={parsed.value().start}"
    names = sorted(
        path.stem for path in (CONF / parsed.key_or_group).glob("*.yaml")
    )  # what a glob chooses from
    values = (
        parsed.value().filter(names) if isinstance(parsed.value(), Glob) else parsed.sweep_string_iterator()
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


def _explain(override: str, cfg: DictConfig, error: Exception) -> tuple[str, str]:
    """What is wrong with a refused override, as (key, why), with a suggestion where a name is near."""
    key, _, value = override.lstrip("+~").partition("=")
    folder = CONF / key.replace("@", "/").split("/")[0]
    if folder.is_dir() and "." not in key:
        options = sorted(path.stem for path in folder.glob("[!_]*.yaml"))
        return key, f"group {key} has no option {value}{suggest(value, options)}"
    node = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node:
            known = [str(each) for each in node] if isinstance(node, DictConfig) else []
            if depth == 0:
                known += [path.name for path in CONF.iterdir() if path.is_dir()]
            inside = f"{'.'.join(parts[:depth])} has" if depth else "there is"
            return key, f"{inside} no key {part}{suggest(part, sorted(set(known)))}"
        node = node._get_node(part)
    cause = error.__cause__ or error  # OmegaConf's own words, from inside Hydra's
    return key, str(cause).splitlines()[0]
