"""The wheel: installed into a fresh environment, it works from an empty folder, without the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vidtrain.files.folders import CONF, IN_CHECKOUT, ROOT, install_hint

PROJECT = Path(__file__).resolve().parents[1]
SCRIPTS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
FEW = [f"+dataset.source.{split}_per_class=2" for split in ("train", "val", "test")]


def test_a_checkout_reads_what_lies_at_its_top():
    assert IN_CHECKOUT
    assert CONF == PROJECT / "conf" and ROOT == PROJECT
    assert install_hint("slurm") == "uv sync --extra slurm"


def test_every_program_has_a_console_script():
    programs = {path.stem for path in CONF.glob("[!_]*.yaml")}
    assert {name: target for name, target in SCRIPTS.items()} == {
        f"vidtrain-{each}": f"vidtrain.{each}:main" for each in programs
    }


def run(*command: str, folder: Path) -> str:
    """What a command prints, in a folder without the checkout; it must end with status 0."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        command, cwd=folder, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert found.returncode == 0, f"{found.stdout[-2000:]}\n{found.stderr[-2000:]}"
    return found.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The scripts folder of a fresh environment that holds the wheel and what it needs."""
    if shutil.which("uv") is None:
        pytest.skip("uv, which builds and installs the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    run("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(PROJECT), folder=folder)
    [wheel] = folder.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    run("uv", "venv", "--quiet", "--python", sys.executable, str(folder / "venv"), folder=folder)
    run("uv", "pip", "install", "--quiet", "--python", str(python), f"{wheel}[slurm]", folder=folder)
    return python.parent


@pytest.mark.slow
def test_the_wheel_trains_from_an_empty_folder(installed, tmp_path):
    said = run(str(installed / "vidtrain-train"), "debug=smoke", *FEW, "trainer.cpu_threads=1", folder=tmp_path)
    assert "trained 2 steps" in said
    run_folder = next((tmp_path / "outputs" / "motion").iterdir())
    assert (run_folder / "summary.json").is_file()
    assert "installed as a package" in (run_folder / "git.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_program_of_the_wheel_says_what_it_does(installed, script, tmp_path):
    said = run(str(installed / script), "--help", folder=tmp_path)
    assert f"python -m {SCRIPTS[script].removesuffix(':main')}" in said


@pytest.mark.slow
def test_the_wheel_holds_the_templates_of_pages(installed, tmp_path):
    code = "from vidtrain.reports.pages import render; print(render('style.css')[:5])"
    assert run(str(installed / "python"), "-c", code, folder=tmp_path).strip() == ":root"


@pytest.mark.slow
def test_the_wheel_holds_what_the_slurm_launcher_needs(installed, tmp_path):
    code = """
from vidtrain.sweeps import submitit_launchers as launching
from vidtrain.files import folders
print(folders.PACKAGE, launching.REQUEUE.is_file(), folders.install_hint("slurm"))
"""
    said = run(str(installed / "python"), "-c", code, folder=tmp_path)
    assert str(installed.parent) in said and "True" in said
    assert "pip install 'WHEEL[slurm]'" in said
