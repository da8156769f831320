"""What answering at once may cost: libraries that take seconds to import stay out of the way."""

import json
import subprocess
import sys
import textwrap

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
    *("baselines", "embed", "labels", "calibrate"),
)


def imported(code: str, names: tuple[str, ...]) -> dict[str, set[str]]:
    """The libraries that are there in a fresh interpreter after `code` was run with each `name` in turn: what is slow
    shows with the first name that brings it, and with all behind it."""
    script = f"import json, sys\nfor name in {names}:\n{textwrap.indent(code, '    ')}"
    script += "    print(json.dumps([name, list(sys.modules)]), file=sys.stderr)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('["')]
    return {name: {module.partition(".")[0] for module in modules} for name, modules in rows}


@pytest.mark.slow
def test_help_and_mistakes_import_nothing_slow():
    asked = """
program = __import__(f"vidtrain.{name}", fromlist=["main"])
for argument in ("--help", "nmae=x"):
    sys.argv = [name, argument]
    try:
        program.main()
    except SystemExit as ended:
        assert ended.code == (2 if argument == "nmae=x" else 0), (name, argument, ended.code)
"""
    libraries = imported(asked, PROGRAMS)
    assert tuple(libraries) == PROGRAMS and "hydra" in libraries["train"]
    assert {name: found & SLOW for name, found in libraries.items()} == dict.fromkeys(PROGRAMS, set())


@pytest.mark.slow
def test_what_a_first_step_needs_imports_torch_and_little_else():
    modules = (
        "vidtrain.training.loop",
        "vidtrain.models.vit3d",
        "vidtrain.app.check",
        "vidtrain.runs.assemble",
    )
    libraries = imported("__import__(name)\n", modules)
    assert "torch" in libraries["vidtrain.training.loop"]
    assert {name: found & BESIDE_TORCH for name, found in libraries.items()} == dict.fromkeys(modules, set())
