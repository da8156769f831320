"""A run's folder: chosen once for all ranks, held by one process, and resumed by naming it again."""

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

# what OmegaConf reads with
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, YAMLError
from yaml import parse as parse_yaml

from vidtrain.config.overrides import check_stored, overrides_of
from vidtrain.config.references import fingerprints, flat, read, refers, settled, to_list, unset_keys
from vidtrain.config.renames import migrate, rename_override
from vidtrain.config.trust import DEEPEST, defaults_of, put_back, set_aside, targets_of
from vidtrain.errors import UserError
from vidtrain.files.atomic import read_json, write_json_atomic, write_text_atomic
from vidtrain.files.escaping import is_masked, masked
from vidtrain.files.folders import RunLock, check_links
from vidtrain.runs.attempts import clear_outcome, record_outcome
from vidtrain.tracking.logger import LoggedRun
from vidtrain.training.checkpoint import resumable

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.training.distributed import Ranks

ABSENT = "absent"
# What the data were when the run was started, and where it went on with others: see vidtrain.runs.data
SPLITS, CHANGES = "splits", "data_changes.jsonl"
LOCK_SECONDS = 180.0
# In run.json: what tells whether settings read the same in the environment as when it was started
READ = "read"
FAILED = "failed"  # in run.json: why the first attempt ended before it saved anything
# What may differ when a run is resumed: it changes where and how fast, never what is computed
RESUMABLE = (
    "run_dir", "data_root", "data.index_root", "data.features_root", "data.decode_timeout_s", "data.max_pixels",
    "data.allow_changed", "dataset.source.root", "dataset.folder", "dataset.source.annotations", "export", "logger",
    "model.published", "trainer.device", "trainer.num_workers", "trainer.save_every", "trainer.keep_every",
    "trainer.profile", "trainer.rank_timeout",
)  # fmt: skip


def with_stored_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line with the overrides that an existing `run_dir=` was started with put before it; and of those,
    the file that they are from.

    So naming the folder is enough to resume; what the command line says again counts. Of a first attempt that failed
    nothing is taken: it is to be started again, with all of its settings. Raises `UserError` for overrides that the
    folder must not bring along by itself, as it may be from elsewhere.
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
                f"{stored[FAILED]}\nStart it again with its settings, mended: {again}"
            )
        return list(arguments), {}
    taken = [
        override
        for override in map(rename_override, overrides)
        if not any(_replaces(argument, override) for argument in arguments)
    ]
    check_whole(taken, str(record))
    check_stored(taken, str(record), f"python -m vidtrain.train {shlex.quote(f'run_dir={folder}')}")
    return taken + list(arguments), dict.fromkeys(taken, str(record))


def check_whole(overrides: Sequence[str], source: str) -> None:
    """Raises `UserError` for stored overrides whose password was not stored with them."""
    lacking = [override for override in overrides if is_masked(override)]
    if lacking:
        key = lacking[0].lstrip("+~").partition("=")[0]
        raise UserError(
            f"{source} holds {', '.join(lacking)}: passwords are not stored. Say {key}= again; written as "
            "'${oc.env:NAME}', a password is read from the environment each time, and need not be said again"
        )


def check_names_a_run(arguments: Sequence[str]) -> None:
    """Raises `UserError` where a command line says `run_dir=` and nothing else but what is of use to a run that is
    resumed, and there is none: it must not silently become the default run. The one that is meant may have been killed
    before it noted anything."""
    if not all(argument.startswith(("run_dir=", "data.allow_changed=")) for argument in arguments):
        return
    folder = _folder_in(arguments)
    if folder is not None and not (folder / "run.json").is_file():
        why = "there is no such folder" if not folder.exists() else "it holds no run.json"
        named = [argument for argument in arguments if argument.startswith("run_dir=")][-1]
        raise UserError(
            f"{named} names no run to resume: {why}. A run that was started there was ended before it noted "
            "its settings: start it again with all of them. For a new run with every default say one of them: "
            f"python -m vidtrain.train dataset=motion {shlex.quote(named)}"
        )


def _folder_in(arguments: Sequence[str]) -> Path | None:
    """The folder that the last `run_dir=` names, without the quotes of Hydra's grammar; None where there is none."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("run_dir=")]
    if not named or named[-1] in ("", "null"):
        return None
    quoted = re.fullmatch(r"""(['"])(.*)\1""", named[-1])
    return Path(quoted[2].replace(f"\\{quoted[1]}", quoted[1]) if quoted else named[-1])


def _replaces(argument: str, stored: str) -> bool:
    """Whether an override of this command line replaces a stored one."""
    keys = {text.lstrip("+~").partition("=")[0] for text in (argument, stored)}
    # a key that is only there because it was added can be set, but not without adding it
    return len(keys) == 1 and (argument.startswith("+") or not stored.startswith("+"))


@contextmanager
def attempt(path: Path) -> Iterator[None]:
    """Within it, what ends a run too early is noted in outcome.json. A `UserError` that ends it before its first
    checkpoint is noted in the folder's run.json too, and what stood there before is put back, so that the next attempt
    is not bound by the settings of this one."""
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
    """The run folder: as configured, else Hydra's of a sweep, else that of a SLURM job, else a new one named by the
    time."""
    if run_dir is not None:
        return Path(run_dir)
    if is_started_by_sweep():
        return Path(HydraConfig.get().runtime.output_dir)
    job = _job_name(os.environ)
    if job is not None:
        return Path("outputs") / name / job
    return ranks.on_main(lambda: _new(Path("outputs") / name))


def is_started_by_sweep() -> bool:
    """Whether a sweep has started this run, and written what lies in its folder."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _job_name(environ: Mapping[str, str]) -> str | None:
    """What a batch job's run folder is called, which is the same when the job is requeued; None outside of one. Steps
    of a job are runs of their own."""
    if "ENVIRONMENT" not in environ or environ["ENVIRONMENT"] != "BATCH" or "SLURM_JOB_ID" not in environ:
        return None
    step = f".{environ['SLURM_STEP_ID']}" if "SLURM_STEP_ID" in environ else ""
    return f"slurm-{environ['SLURM_JOB_ID']}{step}"


def held(path: Path) -> RunLock:
    """The lock of a run folder. After a requeue it may take a while until a node that went down lets go of it. Raises
    `UserError` where another process holds it, and for links in the folder that lead out of it."""
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
        except FileExistsError:  # another run of the same second
            continue
        except OSError as error:
            raise UserError(f"cannot make the run folder {parent / name}: {error}; choose one with run_dir=") from error
        return parent / name
    raise UserError(f"{parent} holds a thousand runs of {stamp}; choose a folder with run_dir=")


def finished(path: Path) -> dict[str, Any] | None:
    """The summary of a run that came to its end, or None."""
    summary = path / "summary.json"
    values = _read_json(summary) if summary.is_file() else {"status": ABSENT}
    return values if values["status"] == "finished" else None


def record(path: Path, cfg: DictConfig) -> str:
    """Writes config.yaml and run.json into a run folder, or compares `cfg` with those of a run to resume. Returns the
    run's id. A run that has saved nothing yet is begun anew. Raises `UserError` naming the settings that differ from
    those the run was started with, unless they change nothing that is computed."""
    if not (path / "run.json").is_file() or not resumable(path / "checkpoints"):
        overrides = to_list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        run_id = hashlib.sha256(f"{path.resolve()} {started}".encode(errors="surrogateescape")).hexdigest()[:12]
        if (path / "run.json").is_file():
            # stopped before it saved anything: the trackers go on with the same run
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
    """Puts into `cfg` the clips that the model brought when the run in a folder was started: conf/ may have changed."""
    keys = unset_keys(cfg)

    def when_started() -> dict[str, Any]:
        if not (finished(path) or resumable(path / "checkpoints")):
            return {}
        settings = stored_settings(path)
        return {key: settings[key] for key in keys if key in settings}

    for key, value in ranks.on_main(when_started).items():
        OmegaConf.update(cfg, key, value)


def logged_run(path: Path, run_id: str, cfg: DictConfig, step: int) -> LoggedRun:
    """What trackers are told of the run in a folder, which starts from `step`. Trials of a sweep are a group."""
    sweep = path.resolve().parent
    in_sweep = is_started_by_sweep() or (sweep / "sweep.json").is_file()
    group = f"{cfg.name}/{sweep.name}" if in_sweep else cfg.name
    return LoggedRun(path, run_id, f"{cfg.name}/{path.name}", group, flat(settled(cfg)), step)


def check_unchanged(path: Path, cfg: DictConfig, what: str) -> None:
    """Raises `UserError` naming the settings in which `cfg` differs from those of the run in a folder, but for those
    that change nothing that is computed; `what` says why that matters."""
    earlier, kept = _stored(path)
    before, now = _settled(earlier, kept, path), flat(settled(cfg))
    own = targets_of(cfg)
    # an argument that one of them leaves out is the same where the other says its default
    taken = [defaults_of(config, own) | values for config, values in ((earlier, before), (cfg, now))]
    record = _read_json(path / "run.json") if (path / "run.json").is_file() else {}
    changed, seen = [], record[READ] if READ in record and isinstance(record[READ], dict) else {}
    is_held = (path / SPLITS).is_dir()  # then what the data are is compared with it, wherever they lie
    for key in sorted(before.keys() | now.keys()):
        old, new = (settings[key] if key in settings else ABSENT for settings in taken)
        if _is_free(key) or (is_held and _lies_elsewhere(cfg, key, old, new)):
            continue
        # once, what a reference to the environment read was stored
        read_the_same = refers(new) and not refers(old) and read(cfg, key) == old
        if old != new and not read_the_same:
            changed.append(f"{key}: {old} -> {new}")
        elif key in seen and fingerprints(cfg, {key: new}) != {key: seen[key]}:
            changed.append(f"{key}: {new} reads another value than it did")
    if changed:
        raise UserError(
            f"the run in {path} {what}:\n  "
            + "\n  ".join(changed)
            + "\nTake these back, or start a new run (with init_from, to go on from these weights)"
        )


def _is_free(key: str) -> bool:
    return key.startswith(RESUMABLE)


def _lies_elsewhere(cfg: DictConfig, key: str, old: Any, new: Any) -> bool:
    """Whether a setting of the dataset is a path, and differs by the folder alone."""
    if not key.startswith("dataset.") or not (isinstance(old, str) and isinstance(new, str)):
        return False
    place = read(cfg, key)
    path = isinstance(place, str) and "/" in place
    return path and os.path.basename(old.rstrip("/")) == os.path.basename(new.rstrip("/"))


def stored_settings(path: Path) -> dict[str, Any]:
    """The settings of the run in a folder, by dotted key, with what the schema has gained since at its default.
    References to the environment stay: it is the reader's, and the folder may be another's. Raises `UserError` where
    they cannot be read, or are from another version that knew other settings."""
    return _settled(*_stored(path), path)


def _settled(stored: DictConfig, kept: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        settings = put_back(flat(settled(stored)), kept)
        return {key: value for key, value in settings.items() if not key.startswith("model.published")}
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]
        raise UserError(
            f"{path / 'config.yaml'} has a reference that leads nowhere: {error.full_key}: {cause}"
        ) from error


def _stored(path: Path) -> tuple[DictConfig, dict[str, str]]:
    """The configuration that a run's folder holds, which computes nothing, and what `put_back` puts back into it."""
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
    """Raises ValueError for YAML whose content is larger or deeper than its text lets one think."""
    depth = 0
    for event in parse_yaml(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent):
            raise ValueError("it holds aliases, which vidtrain writes none of: a few of them stand for any size")
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST}")


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, "name another run_dir")
