"""A run's folder: it is chosen once for all ranks, locked by one process, and resumed if the user names it again."""

import hashlib
import io
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# the parser that OmegaConf uses
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, YAMLError
from yaml import parse as parse_yaml

from vidtrain.config.overrides import check_stored, overrides_of
from vidtrain.config.references import fingerprints, flat, read, refers, settled, to_list, unset_keys
from vidtrain.config.renames import migrate, rename_override
from vidtrain.config.trust import MAX_DEPTH, defaults_of, put_back, set_aside, targets_of
from vidtrain.errors import UserError
from vidtrain.files.atomic import read_json, write_json_atomic, write_text_atomic
from vidtrain.files.escaping import is_masked, masked
from vidtrain.files.folders import RunLock, check_links
from vidtrain.runs.attempts import clear_outcome, record_outcome
from vidtrain.tracking.logger_process import LoggedRun
from vidtrain.training.checkpoint import resumable

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.training.distributed import Ranks

ABSENT = "absent"
# The record of the data at the start, and of changes since then: see vidtrain.runs.data
SPLITS, CHANGES = "splits", "data_changes.jsonl"
LOCK_SECONDS = 180.0
# In run.json: fingerprints of values that settings read from the environment at the start
READ = "read"
FAILED = "failed"  # in run.json: the error that ended the first attempt before it saved anything
# Settings that may differ when a run is resumed, as they never change what is computed
RESUMABLE = (
    "run_dir", "data_root", "data.index_root", "data.features_root", "data.decode_timeout_s", "data.max_pixels",
    "data.allow_changed", "dataset.source.root", "dataset.folder", "dataset.source.annotations", "export", "logger",
    "model.published", "trainer.device", "trainer.num_workers", "trainer.save_every", "trainer.keep_every",
    "trainer.profile", "trainer.rank_timeout",
)  # fmt: skip


def with_stored_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line, preceded by the overrides with which the run in `run_dir=` was started; and a mapping of these
    overrides to the file that holds them.

    So `run_dir=` alone is enough to resume a run; overrides on the command line take precedence. If the first attempt
    failed, its overrides are not used: it must be started again with all of its settings. Raises `UserError` for stored
    overrides that are not trusted, as the folder may come from someone else.
    """
    folder = _folder_in(arguments)
    if folder is None or not (folder / "run.json").is_file():
        return list(arguments), {}
    record = folder / "run.json"
    stored = _read_json(record)
    if "overrides" not in stored:
        raise UserError(f"{record} was not written by vidtrain: name another run_dir")
    overrides = overrides_of(stored, str(record))
    if FAILED in stored:
        if all(argument.startswith(("run_dir=", "-")) for argument in arguments):
            again = shlex.join(["python", "-m", "vidtrain.train", *map(rename_override, overrides)])
            raise UserError(
                f"the run in {record.parent} failed before it saved anything, so there is nothing to resume:\n  "
                f"{stored[FAILED]}\nStart it again with corrected settings: {again}"
            )
        return list(arguments), {}
    kept = [
        override
        for override in map(rename_override, overrides)
        if not any(_replaces(argument, override) for argument in arguments)
    ]
    check_whole(kept, str(record))
    check_stored(kept, str(record), f"python -m vidtrain.train {shlex.quote(f'run_dir={folder}')}")
    return kept + list(arguments), dict.fromkeys(kept, str(record))


def check_whole(overrides: Sequence[str], source: str) -> None:
    """Raises `UserError` for stored overrides with a password, as passwords are not stored."""
    masked_overrides = [override for override in overrides if is_masked(override)]
    if masked_overrides:
        key = masked_overrides[0].lstrip("+~").partition("=")[0]
        raise UserError(
            f"{source} holds {', '.join(masked_overrides)}: passwords are not stored. Give {key}= again, or write it "
            "as '${oc.env:NAME}', which is stored and reads the password from the environment"
        )


def check_names_a_run(arguments: Sequence[str]) -> None:
    """Raises `UserError` if the command line only resumes (`run_dir=`, `data.allow_changed=`) but the folder holds no
    run: without this check, the default run would start silently. The run may have been killed before it wrote
    anything."""
    if not all(argument.startswith(("run_dir=", "data.allow_changed=")) for argument in arguments):
        return
    folder = _folder_in(arguments)
    if folder is not None and not (folder / "run.json").is_file():
        why = "there is no such folder" if not folder.exists() else "it holds no run.json"
        named = [argument for argument in arguments if argument.startswith("run_dir=")][-1]
        raise UserError(
            f"{named} names no run to resume: {why}. If a run was started there, it ended before it stored its "
            "settings: start it again with all of them. To start a new run with all defaults, give one of them: "
            f"python -m vidtrain.train dataset=motion {shlex.quote(named)}"
        )


def _folder_in(arguments: Sequence[str]) -> Path | None:
    """The folder in the last `run_dir=`, without the quotes of Hydra's grammar; None if there is none."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("run_dir=")]
    if not named or named[-1] in ("", "null"):
        return None
    quoted = re.fullmatch(r"""(['"])(.*)\1""", named[-1])
    return Path(quoted[2].replace(f"\\{quoted[1]}", quoted[1]) if quoted else named[-1])


def _replaces(argument: str, stored: str) -> bool:
    """Whether an override of this command line replaces a stored one."""
    keys = {text.lstrip("+~").partition("=")[0] for text in (argument, stored)}
    # a key that a stored +override adds does not exist without it, so a plain override cannot replace that
    return len(keys) == 1 and (argument.startswith("+") or not stored.startswith("+"))


@contextmanager
def attempt(path: Path) -> Iterator[None]:
    """A context that records an exception in outcome.json. If a `UserError` ends the run before its first checkpoint,
    run.json records it too, or is restored to an earlier attempt's content, so that the settings of this attempt do not
    bind the next one."""
    record = path / "run.json"
    before = _read_json(record) if record.is_file() else None
    clear_outcome(path)
    try:
        yield
    except Exception as error:
        record_outcome(path, error)
        saved = bool(resumable(path / "checkpoints"))
        if isinstance(error, UserError) and record.is_file() and not saved:
            failed = before is None or FAILED in before
            write_json_atomic(record, {**_read_json(record), FAILED: str(error)} if failed else before)
        raise


def choose(run_dir: str | None, name: str, ranks: "Ranks") -> Path:
    """The run folder: `run_dir` if configured, else Hydra's folder in a sweep, else that of the SLURM job, else a new
    one named by the time."""
    if run_dir is not None:
        return Path(run_dir)
    if is_started_by_sweep():
        return Path(HydraConfig.get().runtime.output_dir)
    job = _job_name(os.environ)
    if job is not None:
        return Path("outputs") / name / job
    return ranks.on_main(lambda: _new(Path("outputs") / name))


def is_started_by_sweep() -> bool:
    """Whether a sweep started this run and made its folder."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _job_name(environ: Mapping[str, str]) -> str | None:
    """The name of a SLURM batch job's run folder, which stays the same when the job is requeued; None outside of a job.
    Each step of a job is a run of its own."""
    if "ENVIRONMENT" not in environ or environ["ENVIRONMENT"] != "BATCH" or "SLURM_JOB_ID" not in environ:
        return None
    step = f".{environ['SLURM_STEP_ID']}" if "SLURM_STEP_ID" in environ else ""
    return f"slurm-{environ['SLURM_JOB_ID']}{step}"


def held(path: Path) -> RunLock:
    """Locks a run folder. After a requeue this waits, as a node that went down may keep the lock for a while. Raises
    `UserError` if another process holds the lock, or if links in the folder lead out of it."""
    check_links(path, below=True)
    requeued = "SLURM_RESTART_COUNT" in os.environ and os.environ["SLURM_RESTART_COUNT"] != "0"
    deadline = time.monotonic() + (LOCK_SECONDS if requeued else 0.0)
    while True:
        try:
            return RunLock(path)
        except UserError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(1.0)


def _new(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 1000))]
    for name in names:
        try:
            (parent / name).mkdir(parents=True)
        except FileExistsError:  # another run started in the same second
            continue
        except OSError as error:
            raise UserError(f"cannot make the run folder {parent / name}: {error}; choose one with run_dir=") from error
        return parent / name
    raise UserError(f"{parent} holds a thousand runs started at {stamp}; choose a folder with run_dir=")


def finished(path: Path) -> dict[str, Any] | None:
    """The summary of a finished run, else None."""
    summary = path / "summary.json"
    values = _read_json(summary) if summary.is_file() else {"status": ABSENT}
    return values if values["status"] == "finished" else None


def record(path: Path, cfg: DictConfig) -> str:
    """Writes config.yaml and run.json into a run folder, or compares `cfg` with those of a run to resume. Returns the
    run's id. A run without a checkpoint starts from the beginning. Raises `UserError` naming the settings that differ
    from those with which the run was started; `RESUMABLE` settings may differ."""
    if not (path / "run.json").is_file() or not resumable(path / "checkpoints"):
        overrides = to_list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        run_id = hashlib.sha256(f"{path.resolve()} {started}".encode(errors="surrogateescape")).hexdigest()[:12]
        if (path / "run.json").is_file():
            # an attempt that was stopped before its first checkpoint: loggers continue the same run
            earlier = _read_json(path / "run.json")
            same = "overrides" in earlier and earlier["overrides"] == list(map(masked, overrides))
            if same and FAILED not in earlier:
                run_id, started = earlier["id"], earlier["started"]
        stored = settled(cfg)
        write_text_atomic(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(stored)))
        entry = {"id": run_id, "started": started, "overrides": overrides}
        seen = fingerprints(cfg, {key: value for key, value in flat(stored).items() if not _is_free(key)})
        write_json_atomic(path / "run.json", entry | ({READ: seen} if seen else {}))
        return run_id
    check_unchanged(path, cfg, "was started with other settings, and resuming cannot change them")
    return _read_json(path / "run.json")["id"]


def keep_published(path: Path, cfg: DictConfig, ranks: "Ranks") -> None:
    """Sets the clip settings in `cfg` that the published model had when the run in a folder was started, as conf/ may
    have changed since then."""
    keys = unset_keys(cfg)

    def when_started() -> dict[str, Any]:
        if not (finished(path) or resumable(path / "checkpoints")):
            return {}
        settings = stored_settings(path)
        return {key: settings[key] for key in keys if key in settings}

    for key, value in ranks.on_main(when_started).items():
        OmegaConf.update(cfg, key, value)


def logged_run(path: Path, run_id: str, cfg: DictConfig, step: int) -> LoggedRun:
    """The description of a run for its loggers; it starts from `step`. The trials of a sweep form a group."""
    sweep = path.resolve().parent
    in_sweep = is_started_by_sweep() or (sweep / "sweep.json").is_file()
    group = f"{cfg.name}/{sweep.name}" if in_sweep else cfg.name
    return LoggedRun(path, run_id, f"{cfg.name}/{path.name}", group, flat(settled(cfg)), step)


def check_unchanged(path: Path, cfg: DictConfig, what: str) -> None:
    """Raises `UserError` naming the settings that differ between `cfg` and the run in a folder, except `RESUMABLE`
    ones; `what` says in the message why they must not differ."""
    earlier, kept = _stored(path)
    before, now = _settled(earlier, kept, path), flat(settled(cfg))
    targets = targets_of(cfg)
    # an omitted argument equals one that is set to its default
    both = [defaults_of(config, targets) | values for config, values in ((earlier, before), (cfg, now))]
    record = _read_json(path / "run.json") if (path / "run.json").is_file() else {}
    changed, seen = [], record[READ] if READ in record and isinstance(record[READ], dict) else {}
    data_recorded = (path / SPLITS).is_dir()  # then the files themselves are compared, so their folder may change
    for key in sorted(before.keys() | now.keys()):
        old, new = (settings[key] if key in settings else ABSENT for settings in both)
        if _is_free(key) or (data_recorded and _lies_elsewhere(cfg, key, old, new)):
            continue
        # earlier versions stored the value that a reference to the environment read
        read_the_same = refers(new) and not refers(old) and read(cfg, key) == old
        if old != new and not read_the_same:
            changed.append(f"{key}: {old} -> {new}")
        elif key in seen and fingerprints(cfg, {key: new}) != {key: seen[key]}:
            changed.append(f"{key}: {new} reads another value than it did")
    if changed:
        raise UserError(
            f"the run in {path} {what}:\n  "
            + "\n  ".join(changed)
            + "\nUndo these changes, or start a new run (with init_from, to start from these weights)"
        )


def _is_free(key: str) -> bool:
    return key.startswith(RESUMABLE)


def _lies_elsewhere(cfg: DictConfig, key: str, old: Any, new: Any) -> bool:
    """Whether a setting of the dataset is a path that differs only by its folder."""
    if not key.startswith("dataset.") or not (isinstance(old, str) and isinstance(new, str)):
        return False
    place = read(cfg, key)
    path = isinstance(place, str) and "/" in place
    return path and os.path.basename(old.rstrip("/")) == os.path.basename(new.rstrip("/"))


def stored_settings(path: Path) -> dict[str, Any]:
    """The settings of the run in a folder, by dotted key; settings that later versions added have their defaults.
    References to the environment are not resolved, as the folder may come from someone else. Raises `UserError` if the
    settings cannot be read, or if another version wrote keys that are unknown here."""
    return _settled(*_stored(path), path)


def _settled(stored: DictConfig, kept: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        settings = put_back(flat(settled(stored)), kept)
        return {key: value for key, value in settings.items() if not key.startswith("model.published")}
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]
        raise UserError(
            f"{path / 'config.yaml'} has a reference that cannot be resolved: {error.full_key}: {cause}"
        ) from error


def _stored(path: Path) -> tuple[DictConfig, dict[str, str]]:
    """The configuration in a run's folder, without values that would be evaluated, and these values for `put_back`."""
    stored = path / "config.yaml"
    try:
        text = stored.read_text(encoding="utf-8")
        _check_size(text)
        settings = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
        if not isinstance(settings, dict):
            raise ValueError("it holds no mapping")
        config, kept = set_aside(cast(dict[str, Any], settings))
        return migrate(config, str(stored)), kept
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"{stored} cannot be read ({cause}): the folder of a run holds it") from error


def _check_size(text: str) -> None:
    """Raises ValueError for YAML with aliases, which can expand to any size, or with too deep nesting."""
    depth = 0
    for event in parse_yaml(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent):
            raise ValueError("it holds aliases, which vidtrain never writes and which can expand to any size")
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, "name another run_dir")
