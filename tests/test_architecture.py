"""The import rules of the design, read from the code itself."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vidtrain"
# From the ground up: a room may import rooms of floors below its own, and nothing else of ours
FLOORS = (
    {"errors"},
    {"files"},
    {"data", "models", "evaluation", "tracking", "reports"},
    {"training"},
    {"config"},
    {"build"},
    {"evaluator"},
    {"runs"},
    {"app", "benchmarking"},
    {"sweeps"},
    {"prediction", "comparison", "embeddings"},
    {"train", "evaluate", "predict", "compare", "sweep", "export", "benchmark"},
    {"split", "prepare", "audit", "baselines", "embed", "labels", "calibrate"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Going on with a sweep is training
ALLOWED = {("sweep", "train")}
# library -> the rooms that may import it
MAY_USE = {
    "hydra": {"app", "build", "config", "runs", "sweeps"},
    "optuna": {"sweeps"},
    "submitit": {"sweeps"},
    "hydra_plugins": {"sweeps"},
    "wandb": {"tracking"},
    "mlflow": {"tracking"},
    "tensorboard": {"tracking"},
    "av": {"data"},
    "sklearn": {"evaluator", "embeddings"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    """The wing that a file lies in, or its name where it lies on top."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else file.stem


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_file_stands_on_a_floor():
    assert {room(file) for file in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("room_name", sorted(FLOOR))
def test_arrows_point_down(room_name):
    for file in FILES:
        if room(file) == room_name:
            ours = {name.split(".")[1] for name in imports(file) if name.startswith("vidtrain.")} & set(FLOOR)
            up = {each for each in ours - {room_name} if FLOOR[each] >= FLOOR[room_name]}
            assert not {each for each in up if (room_name, each) not in ALLOWED}, file


@pytest.mark.parametrize("library", MAY_USE)
def test_libraries_stay_in_their_rooms(library):
    users = {room(file) for file in FILES if library in {name.split(".")[0] for name in imports(file)}}
    assert users <= MAY_USE[library]


def test_the_loop_stays_readable_in_one_sitting():
    assert len((PACKAGE / "training" / "loop.py").read_text().splitlines()) <= 260


# What is still larger than the rule: the list may shrink, and nothing may join it
LONG_FUNCTIONS = {
    "models/vit3d.py:__init__",
    "models/residual3d.py:__init__",
}
DEEP_FUNCTIONS: set[str] = set()
LARGE_ROOMS = set()
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


@cache
def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{file.relative_to(PACKAGE)}:{node.name}", node)
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef)
    ]


def nesting(node: ast.AST) -> int:
    """How deep blocks stand in one another; an elif counts as a block within the if."""
    inner = max((nesting(child) for child in ast.iter_child_nodes(node)), default=0)
    return inner + isinstance(node, BLOCKS)


def test_functions_fit_on_a_screen():
    long = {name for name, node in functions() if node.end_lineno - node.lineno + 1 > 60}
    assert long == LONG_FUNCTIONS


def test_functions_are_not_nested_deeper_than_four():
    assert {name for name, node in functions() if nesting(node) > 4} == DEEP_FUNCTIONS


def test_the_loop_is_not_nested_deeper_than_three():
    assert max(nesting(node) for name, node in functions() if name.startswith("training/loop.py")) <= 3


def test_rooms_hold_sixteen_modules_at_most():
    folders = {file.parent for file in FILES} - {PACKAGE}
    large = {
        str(folder.relative_to(PACKAGE))
        for folder in folders
        if len(list(folder.glob("*.py"))) - 1 > 16  # but __init__.py
    }
    assert large == LARGE_ROOMS
