"""Where a model's weights start: init_from, else pretrained, else from scratch."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import nn

from vidtrain.config.published import describe_published, unseen_clips
from vidtrain.config.schemas import to_list
from vidtrain.files.atomic import write_json_atomic
from vidtrain.training.checkpoint import resumable
from vidtrain.training.ranks.distributed import Ranks


def check_starting_point(cfg: DictConfig, model: nn.Module | None) -> None:
    """Raises `UserError` for a name of weights that nothing can be found under, and for a file on this machine that
    does not fit `model`, which may lie on the meta device, or be None where there is none to compare it with.

    Goes to no network: what is yet to be downloaded is compared with the model when it is loaded. A run that is
    resumed needs no starting point.
    """
    if cfg.run_dir is not None and resumable(Path(cfg.run_dir) / "checkpoints"):
        return
    sources = _sources(cfg)
    if not sources:
        return
    from vidtrain.models.weights.files import check_source
    from vidtrain.models.weights.loading import check_pretrained

    if cfg.init_from is None:
        for source in sources:
            check_source(source)
        sources = [source for source in sources if Path(source).exists()]
    for source in sources if model is not None else []:
        check_pretrained(model, source, Path(source), cfg.init_match)


def _sources(cfg: DictConfig) -> list[str]:
    """A checkpoint of ours, of a run's folder the best one, comes before published weights."""
    if cfg.init_from is None:
        if cfg.pretrained is None:
            return []
        from vidtrain.models.weights.files import as_sources  # which, with all formats, takes seconds

        return as_sources(cfg.pretrained)
    best = Path(cfg.init_from) / "checkpoints" / "best.pt"
    return [str(best) if best.is_file() else cfg.init_from]


def load_starting_point(cfg: DictConfig, model: nn.Module, ranks: Ranks, console: Any, folder: Path) -> str:
    """Loads the weights that the configuration names; says in the log and in starting_point.json what fitted.

    Several sources, such as an encoder and a probe, are loaded in turn. Returns a word for the log.
    """
    if HydraConfig.initialized():
        context = HydraConfig.get()
        line = describe_published(cfg, to_list(context.overrides.task), context.runtime.choices)
        if line is not None:
            console.info(line)
    sources = _sources(cfg)
    if not sources:
        return "from scratch"
    from vidtrain.models.weights.files import locate
    from vidtrain.models.weights.loading import load_pretrained

    if cfg.init_from is not None:
        paths = [Path(source) for source in sources]
        if cfg.pretrained is not None:
            console.info("init_from comes before pretrained, which is not used")
    else:  # downloaded once; the others find it where rank 0 put it
        paths = ranks.on_main(lambda: [locate(each, cfg.pretrained_revision) for each in sources])
    reports = [
        load_pretrained(model, source, path, cfg.init_match)
        for source, path in zip(sources, paths, strict=True)
    ]
    for found in reports:
        first, *rest = found.lines()
        console.info("weights of " + "\n  ".join([first, *rest]))
    loaded = {name for found in reports for name in found.loaded}
    fresh = [name for name in model.state_dict() if name not in loaded]
    if fresh:
        shown = ", ".join(fresh[:6]) + (", ..." if fresh[6:] else "")
        console.info(f"initialized at random: {len(fresh)} tensors: {shown}")
    for warning in unseen_clips(cfg, sources) if cfg.init_from is None else []:
        console.warn(warning)
    if ranks.is_main:
        record = {"sources": [found.as_dict() for found in reports], "initialized": fresh}
        write_json_atomic(folder / "starting_point.json", record)
    return "starts from " + " and ".join(sources)
