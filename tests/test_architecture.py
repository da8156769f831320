"""The import rule of the design, read from the code itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vidtrain"
WINGS = ("data", "models", "evaluation", "training", "tracking")

# wing -> what of ours it may import besides itself; vidtrain.errors, flushing, links, names, secrecy, shipped and
# torch_files are everybody's
MAY_IMPORT = {
    "data": set(),
    "models": set(),
    "tracking": set(),
    "evaluation": set(),
    "training": {"evaluation"},
}
# library -> who may import it: wings, or modules on top (the programs and what they share)
MAY_USE = {
    "hydra": {
        "app",
        "build",
        "config",
        "launcher_plugin",
        "launching",
        "run_folder",
        "schemas",
        "stored_config",
        "stored_overrides",
        "sweep_base",
        "sweep_grid",
        "sweep_optuna",
        "sweep_overrides",
        "sweep_plugin",
        "sweep_study",
    },
    "omegaconf": {
        "annotations",
        "app",
        "benchmark",
        "benchmark_variants",
        "build",
        "build_data",
        "build_run",
        "check",
        "config",
        "export",
        "export_model",
        "launcher_plugin",
        "predict",
        "prediction_setup",
        "references",
        "run_benchmark",
        "run_folder",
        "run_pictures",
        "run_report",
        "schemas",
        "starting_point",
        "stored_config",
        "sweep_base",
        "sweep_grid",
        "sweep_optuna",
        "sweep_plugin",
        "sweep_study",
        "train",
        "trained",
        "evaluate",
    },
    "optuna": {"sweep_study"},
    "wandb": {"tracking"},
    "mlflow": {"tracking"},
    "tensorboard": {"tracking"},
    "av": {"data"},
    "submitit": {"launching"},
    "hydra_plugins": {"launching"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    """The wing that a file lies in, or its name where it lies on top."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else file.stem


def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_is_something_to_check():
    assert {room(file) for file in FILES} >= {*WINGS, "train", "evaluate", "config"}


@pytest.mark.parametrize("wing", WINGS)
def test_wings_import_only_what_the_design_allows(wing):
    for file in (PACKAGE / wing).rglob("*.py"):
        ours = {name.split(".")[1] for name in imports(file) if name.startswith("vidtrain.")}
        assert (
            ours
            <= {wing, "errors", "flushing", "links", "names", "secrecy", "shipped", "torch_files"}
            | MAY_IMPORT[wing]
        ), file


@pytest.mark.parametrize("library", MAY_USE)
def test_libraries_stay_in_their_rooms(library):
    users = {room(file) for file in FILES if library in {name.split(".")[0] for name in imports(file)}}
    assert users <= MAY_USE[library]


def test_the_loop_stays_readable_in_one_sitting():
    assert len((PACKAGE / "training" / "loop.py").read_text().splitlines()) <= 260
