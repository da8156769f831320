"""What answering at once may cost: libraries that take seconds to import stay out of the way."""

import json
import subprocess
import sys

import pytest

# What a help text or a misspelled override needs none of
SLOW = {
    *(
        "torch",
        "torchvision",
        "timm",
        "torchmetrics",
        "transformers",
        "wandb",
        "mlflow",
        "tensorboard",
        "optuna",
    ),
    *("av", "scipy", "matplotlib", "pandas", "PIL", "sympy", "onnx", "onnxruntime"),
}
# What the loop and a default run are made of
BESIDE_TORCH = SLOW - {"torch", "av"}
PROGRAMS = (
    *("train", "evaluate", "predict", "compare", "sweep", "export", "benchmark", "split", "prepare", "audit"),
    "baselines",
)


def imported(code: str) -> set[str]:
    """The libraries that are there after `code` in a fresh interpreter, whatever it prints and however it ends."""
    script = (
        f"import atexit, json, sys\natexit.register(lambda: print(json.dumps(list(sys.modules))))\n{code}"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in json.loads(output.splitlines()[-1])}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_mistakes_import_nothing_slow(program):
    asked = f"""
import vidtrain.{program} as program
for argument in ("--help", "nmae=x"):
    sys.argv = ["{program}", argument]
    try:
        program.main()
    except SystemExit as ended:
        assert ended.code == (2 if argument == "nmae=x" else 0), ended.code
"""
    libraries = imported(asked)
    assert "hydra" in libraries and not libraries & SLOW


@pytest.mark.parametrize(
    "module",
    ("vidtrain.training.loop", "vidtrain.app.check", "vidtrain.runs.assemble", "vidtrain.models.vit3d"),
)
def test_what_a_first_step_needs_imports_torch_and_little_else(module):
    libraries = imported(f"import {module}")
    assert "torch" in libraries and not libraries & BESIDE_TORCH
