"""What a run's folder remembers of a failed attempt, and what it lets a resumed run change."""

import json
import os

import pytest
from omegaconf import OmegaConf

from vidtrain.config.targets import register_schemas
from vidtrain.errors import UserError
from vidtrain.runs.folder import (
    attempt,
    check_names_a_run,
    check_unchanged,
    logged_run,
    record,
    stored_settings,
    with_stored_overrides,
)

register_schemas()  # configurations refer to what the model was published with


def write(folder, **record):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"id": "x", **record}))


def fail_in(folder, message, overrides):
    with pytest.raises(UserError, match=message), attempt(folder):
        write(folder, overrides=overrides)
        raise UserError(message)


def test_a_first_attempt_that_failed_binds_nothing(tmp_path):
    named = f"run_dir={tmp_path}"
    fail_in(tmp_path, "no.pt is not a file", [named, "init_from=no.pt", "dataset.name=a b"])
    assert with_stored_overrides([named, "seed=1"]) == ([named, "seed=1"], {})
    with pytest.raises(UserError) as error:
        with_stored_overrides([named])  # and must not silently become the default run
    assert str(error.value).startswith(f"the run in {tmp_path} failed before it saved anything")
    assert "no.pt is not a file" in str(error.value)
    assert str(error.value).endswith(f"python -m vidtrain.train run_dir={tmp_path} init_from=no.pt 'dataset.name=a b'")
    fail_in(tmp_path, "again", [named, "seed=2"])
    assert json.loads((tmp_path / "run.json").read_text())["failed"] == "again"


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on_by_name(tmp_path):
    named = f"run_dir={tmp_path}"
    with pytest.raises(KeyboardInterrupt), attempt(tmp_path):
        write(tmp_path, overrides=["seed=3"])
        raise KeyboardInterrupt
    assert with_stored_overrides([named])[0] == ["seed=3", named]
    fail_in(tmp_path, "a bad idea", ["seed=3", "init_from=no.pt"])  # which does not outlive itself
    assert with_stored_overrides([named])[0] == ["seed=3", named]


def test_a_folder_alone_must_hold_a_run(tmp_path):
    def refusal(*arguments):
        with pytest.raises(UserError) as error:
            check_names_a_run(arguments)
        return str(error.value)

    assert refusal(f"run_dir={tmp_path}/gone") == (
        f"run_dir={tmp_path}/gone names no run to resume: there is no such folder. If a run was started there, it "
        "ended before it stored its settings: start it again with all of them. To start a new run with all defaults, "
        f"give one of them: python -m vidtrain.train dataset=motion run_dir={tmp_path}/gone"
    )
    said = refusal(f"run_dir={tmp_path}/gone", "data.allow_changed=true")  # of use to a run that is resumed only
    assert said.startswith(f"run_dir={tmp_path}/gone names no run") and said.endswith(f"run_dir={tmp_path}/gone")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / ".lock").touch()  # killed as soon as it had begun
    assert "names no run to resume: it holds no run.json" in refusal(f"run_dir='{tmp_path}/a b'")
    write(tmp_path / "a b", overrides=["seed=3"])
    named = f"run_dir='{tmp_path}/a b'"
    check_names_a_run([named])
    assert with_stored_overrides([named])[0] == [
        "seed=3",
        named,
    ]  # and the quotes are Hydra's, not the folder's
    for arguments in (["run_dir=new", "seed=1"], ["run_dir=new", "--cfg", "job"], ["run_dir=null"], []):
        check_names_a_run(arguments)


def test_a_run_with_a_checkpoint_keeps_its_record(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.pt").touch()
    fail_in(tmp_path, "the disk is full", ["seed=3"])
    assert with_stored_overrides([f"run_dir={tmp_path}"])[0] == ["seed=3", f"run_dir={tmp_path}"]


def test_a_record_of_something_else_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"steps": 1}')
    with pytest.raises(UserError, match="run.json was not written .*run_dir"):
        with_stored_overrides([f"run_dir={tmp_path}"])


def config(**changes):
    nodes = {
        "name": "x",
        "dataset": {"name": "x", "source": {"root": "/a"}},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1.0},
        "stage": {"full": {"duration": "100%"}},
        **changes,
    }
    for group in ("augmentation", "model", "schedule", "logger"):
        nodes[group] = {}
    return OmegaConf.create(nodes)


def test_folders_and_data_may_have_names_that_are_no_utf8(tmp_path):
    """As `run_dir=caf\xe9` of a Latin-1 terminal: Python keeps the byte as a surrogate."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    root = os.fsdecode(b"/data/caf\xe9")
    assert len(record(folder, config(dataset={"name": "x", "source": {"root": root}}))) == 12
    assert stored_settings(folder)["dataset.source.root"] == root


def test_an_older_folder_differs_only_in_what_it_says(tmp_path):
    from vidtrain.config.renames import migrate

    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    now = migrate(OmegaConf.to_container(config()), "now")
    check_unchanged(tmp_path, now, "differs")  # though it lacks most keys of the schema
    now.optimizer.betas = [0.9, 0.999]  # which the constructor takes without being told
    now.dataset.source.root = "/b"
    check_unchanged(tmp_path, now, "differs")
    now.optimizer.betas = [0.9, 0.99]
    now.clip.short_video_policy = "wrap"
    with pytest.raises(UserError) as error:
        check_unchanged(tmp_path, now, "is finished, with other settings")
    assert str(error.value).splitlines()[:3] == [
        f"the run in {tmp_path} is finished, with other settings:",
        "  clip.short_video_policy: repeat_last -> wrap",
        "  optimizer.betas: [0.9, 0.999] -> [0.9, 0.99]",
    ]


def with_secrets(**changes):
    from vidtrain.config.renames import migrate

    found = config(data_root="${oc.env:PLACE}", optimizer={"_target_": "torch.optim.AdamW", "lr": "${oc.env:LR}"})
    found.logger = {"mlflow": {"tracking_uri": "http://u:${oc.env:PW}@h", "notes": "http://v:literal@h"}}
    return migrate(OmegaConf.to_container(OmegaConf.merge(found, changes)), "now")


@pytest.fixture
def environment(monkeypatch):
    for name, value in {"PLACE": "/place/of/data", "LR": "0.125", "PW": "open sesame"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_folder_holds_references_to_the_environment_and_no_passwords(tmp_path, environment):
    run_id = record(tmp_path, with_secrets())
    told = logged_run(tmp_path, run_id, with_secrets(), 0)
    written = (tmp_path / "config.yaml").read_text() + (tmp_path / "run.json").read_text() + repr(told)
    for secret in ("/place/of/data", "0.125", "open sesame", "literal"):
        assert secret not in written
    stored = stored_settings(tmp_path)
    assert (stored["data_root"], stored["optimizer.lr"]) == ("${oc.env:PLACE}", "${oc.env:LR}")
    assert stored["logger.mlflow.tracking_uri"] == "http://u:${oc.env:PW}@h"
    assert told.settings["logger.mlflow.notes"] == "http://v:***@h"


def test_what_a_setting_reads_in_the_environment_must_stay(tmp_path, environment):
    record(tmp_path, with_secrets())
    environment.setenv("PLACE", "/elsewhere")  # where the data lies changes nothing
    environment.setenv("PW", "another")
    check_unchanged(tmp_path, with_secrets(), "differs")
    environment.setenv("LR", "0.25")
    with pytest.raises(UserError) as error:
        check_unchanged(tmp_path, with_secrets(), "differs")
    assert str(error.value).splitlines()[1:2] == ["  optimizer.lr: ${oc.env:LR} reads another value than it did"]
    assert "0.25" not in str(error.value)


def test_a_folder_of_before_references_were_kept_goes_on(tmp_path, environment):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(with_secrets(), resolve=True))
    check_unchanged(tmp_path, with_secrets(), "differs")
    environment.setenv("LR", "0.25")
    with pytest.raises(UserError, match=r"optimizer.lr: 0.125 -> \$\{oc.env:LR\}"):
        check_unchanged(tmp_path, with_secrets(), "differs")


def test_an_override_without_its_password_is_to_be_said_again(tmp_path):
    uri = "logger.mlflow.tracking_uri=http://u:pw@h"
    write(tmp_path, overrides=["seed=3", uri.replace("pw", "***")])
    named = f"run_dir={tmp_path}"
    with pytest.raises(UserError) as error:
        with_stored_overrides([named])
    assert str(error.value) == (
        f"{tmp_path}/run.json holds logger.mlflow.tracking_uri=http://u:***@h: passwords are not stored. Give "
        "logger.mlflow.tracking_uri= again, or write it as '${oc.env:NAME}', which is stored and reads the password "
        "from the environment"
    )
    assert with_stored_overrides([named, uri])[0] == ["seed=3", named, uri]
