"""Training with passwords in the environment and on the command line: none is found in what it prints and leaves."""

import json
import os
import socket
from importlib.util import find_spec

import pytest
from fork_server import run_program
from omegaconf import OmegaConf
from small_run import small

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")]
SMALL = small("trainer.epochs=1", "trainer.batch_size=5", train=1)
READ, SAID = "open-sesame-1234", "said-aloud-5678"


def start(folder, *overrides, **environment):
    return run_program("train", *overrides, cwd=folder, env={**os.environ, **environment})


def test_a_run_leaves_no_password(tmp_path):
    with socket.socket() as taken:  # nobody answers there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    uri = f"logger.mlflow.tracking_uri='http://u:${{oc.env:TRACKING_PW}}@127.0.0.1:{port}'"
    ended = start(
        tmp_path, *SMALL, "run_dir=run", "data_root=${oc.env:PLACE}", "logger=[wandb_offline,mlflow,tensorboard]",
        "export.card=true", "export.formats=[safetensors]",
        uri,
        f"logger.wandb.notes='see http://v:{SAID}@127.0.0.1'",
        PLACE=str(tmp_path / "place"), TRACKING_PW=READ, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout + ended.stderr
    assert "MLflow is switched off for this run" in said
    run = tmp_path / "run"
    files = [path for path in run.rglob("*") if path.is_file() and not path.name.endswith(".wandb")]
    names = {path.name for path in files}
    assert names >= {
        "config.yaml",
        "run.json",
        ".mlflow.log",
        "best.pt",
        "MODEL_CARD.md",
        "model.safetensors",
    }
    found = {path: path.read_bytes() for path in files}
    for secret in (READ, SAID):
        assert secret not in said
        assert [path for path, data in found.items() if secret.encode() in data] == []
    (mirrored,) = run.rglob("*.wandb")
    assert READ.encode() not in mirrored.read_bytes()  # the notes are there, as was asked
    stored = OmegaConf.load(run / "config.yaml")
    assert OmegaConf.to_container(stored)["data_root"] == "${oc.env:PLACE}"
    assert "${oc.env:TRACKING_PW}" in OmegaConf.to_container(stored)["logger"]["mlflow"]["tracking_uri"]
    assert (run / "starting_point.json").is_file() is False

    # it is resumed where what was not stored, and what reads the environment, is said again
    again = start(tmp_path, "run_dir=run", PLACE=str(tmp_path / "place"), TRACKING_PW=READ)
    assert again.returncode == 2 and "passwords are not stored. Give logger.wandb.notes= again" in again.stderr
    again = start(tmp_path, "run_dir=run", "logger.wandb.notes=none", PLACE=str(tmp_path / "place"), TRACKING_PW=READ)
    assert again.returncode == 2 and "data_root=${oc.env:PLACE}" in again.stderr  # the folder may be another's
    mine = ["run_dir=run", "logger.wandb.notes=none", "data_root=${oc.env:PLACE}", uri]
    again = start(tmp_path, *mine, PLACE=str(tmp_path / "place"), TRACKING_PW=READ)
    assert again.returncode == 0 and "is finished: best val top1" in again.stdout, again.stderr
    absent = start(tmp_path, *mine, TRACKING_PW=READ)
    assert absent.returncode == 2 and "Environment variable 'PLACE' not found" in absent.stderr
    assert json.loads((run / "run.json").read_text())["overrides"][-1].endswith("see http://v:***@127.0.0.1'")


def test_a_sweep_keeps_references_and_takes_passwords_again(tmp_path):
    command = ["-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep", "trainer.steps_per_epoch=1"]
    uri = "+logger.mlflow.{}='http://u:{}@127.0.0.1:9'"
    kept, said = uri.format("tags.kept", "${oc.env:TRACKING_PW}"), uri.format("tags.said", SAID)
    ended = start(tmp_path, *command, "logger=mlflow", "logger.mlflow.tracking_uri=sqlite:///m.db", kept, said,
                  TRACKING_PW=READ)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert not {READ, SAID} & set((ended.stdout + ended.stderr).replace("@", ":").split(":"))
    for name in ("sweep.json", "0/trial.json", "1/run.json"):
        words = (tmp_path / "sweep" / name).read_text()
        assert "${oc.env:TRACKING_PW}" in words and "http://u:***@" in words, name
        assert READ not in words and SAID not in words, name
    again = run_program("sweep", "resume", "sweep", cwd=tmp_path)
    assert again.returncode == 2 and "sweep.json holds +logger.mlflow.tags.said=" in again.stderr
    environment = {**os.environ, "TRACKING_PW": READ}
    again = run_program("sweep", "resume", "sweep", kept, said, "seed=0,1,2", cwd=tmp_path, env=environment)
    assert again.returncode == 0 and "3 trials, 1 to run, 1 new, 2 ended" in again.stdout, again.stderr
