"""A run's folder: chosen once for all ranks, held by one process, and resumed by naming it again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vidtrain.errors import UserError
from vidtrain.tracking.atomic import write_json_atomic, write_text_atomic

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.training.distributed import Ranks

# What may differ when a run is resumed: it changes where and how fast, never what is computed
FREE = ("run_dir", "data_root", "data.index_root", "data.time_limit", "dataset.source.root", "dataset.folder",
        "dataset.source.annotations", "logger", "trainer.device", "trainer.num_workers",
        "trainer.save_every", "trainer.keep_every", "trainer.profile")  # fmt: skip


def with_stored_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line with the overrides that an existing `run_dir=` was started with put before it.

    So naming the folder is enough to resume; what the command line says again counts.
    """
    named = [each.partition("=")[2] for each in arguments if each.startswith("run_dir=")]
    record = Path(named[-1]) / "run.json" if named else None
    if record is None or not record.is_file():
        return list(arguments)
    said = {each.partition("=")[0] for each in arguments}
    stored = _read_json(record)["overrides"]
    return [each for each in stored if each.partition("=")[0] not in said] + list(arguments)


def choose(cfg: DictConfig, ranks: "Ranks") -> Path:
    """The run folder: as configured, else Hydra's of a sweep, else a new one named by the time."""
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().runtime.output_dir)
    return ranks.on_main(lambda: _new(Path("outputs") / cfg.name))


def _new(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 1000))]
    for name in names:
        try:
            (parent / name).mkdir(parents=True)
        except FileExistsError:  # another run of the same second
            continue
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {parent / name}: {error}; choose one with run_dir="
            ) from error
        return parent / name
    raise UserError(f"{parent} holds a thousand runs of {stamp}; choose a folder with run_dir=")


def finished(path: Path) -> dict[str, Any] | None:
    """The summary of a run that came to its end, or None."""
    summary = path / "summary.json"
    found = _read_json(summary) if summary.is_file() else {"status": "absent"}
    return found if found["status"] == "finished" else None


def record(path: Path, cfg: DictConfig) -> str:
    """Writes config.yaml and run.json into a run folder, or holds `cfg` against those of a run to resume.

    Returns the run's id. A run that has saved nothing yet is begun anew. Raises `UserError` naming the settings
    that differ from those the run was started with, unless they change nothing that is computed.
    """
    if not (path / "run.json").is_file() or not (path / "checkpoints" / "last.pt").is_file():
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        run_id = hashlib.sha256(f"{path.resolve()} {started}".encode()).hexdigest()[:12]
        write_text_atomic(path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        write_json_atomic(path / "run.json", {"id": run_id, "started": started, "overrides": overrides})
        return run_id
    before = flat(OmegaConf.to_container(OmegaConf.load(path / "config.yaml")))
    now = flat(OmegaConf.to_container(cfg, resolve=True))
    changed = [
        f"{key}: {before[key] if key in before else 'absent'} -> {now[key] if key in now else 'absent'}"
        for key in sorted(before.keys() | now.keys())
        if (key not in before or key not in now or before[key] != now[key]) and not key.startswith(FREE)
    ]
    if changed:
        raise UserError(
            f"the run in {path} was started with other settings, and resuming cannot change them:\n  "
            + "\n  ".join(changed)
            + "\nTake these back, or start a new run (with init_from, to go on from these weights)"
        )
    return _read_json(path / "run.json")["id"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); name another run_dir") from error


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists stay whole."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }
