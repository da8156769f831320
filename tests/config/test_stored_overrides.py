"""What a folder from elsewhere may bring along when a run or a sweep in it goes on: by name alone, and with payloads
that would leave a file if they ran."""

import json
import shlex
import sys

import pytest
import torch

from vidtrain import sweep
from vidtrain.app.launch import launch
from vidtrain.config.overrides import check_trials, may_be_taken
from vidtrain.config.trust import is_trusted_pruner
from vidtrain.errors import UserError
from vidtrain.runs.folder import with_stored_overrides
from vidtrain.sweeps import record as sweep_trial
from vidtrain.sweeps.base import forget_results
from vidtrain.sweeps.record import SweepRecord, Trial
from vidtrain.tracking.console import make_console
from vidtrain.training.distributed import Ranks

HARMLESS = [
    "seed=3",
    "optimizer.lr=1e-4,3e-4",
    "optimizer.lr=tag(log, interval(1e-5, 1e-2))",
    "seed=range(0,3)",
    "model=vit3d_tiny,vit3d_base",
    "+experiment=motion_baseline",
    "stage=progressive",
    "~stage.full",
    "dataset.source.root=${data_root}/my videos",
    "dataset.source.root='/data/my videos'",
    "data_root=../data",
    "init_from=/runs/best.pt",
    "dataset.source.group_pattern='_g([0-9]+)_c.*\\.avi$'",
    "+dataset.source.train_per_class=2",
    "pretrained=facebook/vjepa2-vitl-fpc64-256",
    "optimizer={_target_: torch.optim.RMSprop, _partial_: true}",
    "optimizer._target_=torch.optim.RMSprop",
    "trainer.eval_every=10%",
    "dataset.name='a b'",
]
HARMFUL = [
    "++run_dir=/elsewhere",
    "optimizer._target_=os.mkdir",
    "+optimizer._target_=torch.nn.functional.torch.hub.load",
    "loss={_target_: os.mkdir}",
    "loss.label_smoothing=[1,{a: {_target_: os.mkdir}}]",
    "loss.label_smoothing=choice(1, {_target_: os.mkdir})",
    "optimizer._target_=torch.optim.Adam,os.mkdir",
    "optimizer._target_=${name}",
    "optimizer._target_.x=1",
    "name=${oc.env:SECRET}",
    "name='${oc.env:SECRET}'",
    'name="x${oc.env:SECRET}"',
    "loss.label_smoothing=[0.1,'${oc.create:{a:1}}']",
    "+loss={'${oc.env:SECRET}': 1}",
    "name=${seed}{oc.env:SECRET}",
    "loss=../../../../tmp/evil",
    "loss=/tmp/evil",
    "+loss@model.x=../evil",
    "model=vit3d_tiny,../evil",
    "mine=../evil",  # of a folder that the user may name
    "stage/phase=../evil",
    "hydra.searchpath=[file:///tmp]",
    "hydra.job_logging.handlers.x={class: os.mkdir}",
    "hydra.callbacks.x._target_=os.mkdir",
    "+hydra.callbacks.x={_target_: os.mkdir}",
    "hydra.run.dir=/tmp",
    "hydra/launcher=slurm",
    "loss@hydra.callbacks.x=focal",
    "hydra.sweep.dir=x",
    "--config-dir=/tmp/evil",
    "-m",
    "--experimental-rerun=/tmp/evil.pickle",
    "-cd=/tmp/evil",
    "name='x\ntouch ran\n'",  # a line of its own in a job's script
    "a[b",
    "",
]
OF_A_SWEEP = [
    "hydra/launcher=slurm",
    "hydra/sweeper=optuna",
    "hydra/sweeper/sampler=random",
    "hydra/sweeper/pruner=none",
    "hydra.sweep.dir=multirun/x",
    "hydra.sweep.dir='multirun/${name}'",
    "hydra.sweep.subdir=${hydra.job.num}",
    "hydra.sweeper.n_trials=12",
    "hydra.sweeper.pruner.n_startup_trials=3",
    "hydra.launcher.partition=gpu",
    "hydra.launcher.mem_gb=64",
    "hydra.launcher.tasks_per_node=8",
    "seed=0,1",
]
NOT_OF_A_SWEEP = [
    "hydra.launcher._target_=os.mkdir",
    "hydra.sweeper._target_=os.mkdir",
    "hydra.sweeper.sampler._target_=optuna.samplers.CmaEsSampler",  # it unpickles what its study holds
    "hydra.sweeper.pruner={_target_: os.mkdir}",
    "hydra.sweeper.sampler.x={_target_: os.mkdir}",
    "hydra.sweeper.storage=sqlite:////home/me/other.db",
    "hydra.sweeper.params={seed: 1}",
    "hydra.launcher.setup=[touch ran]",
    "hydra.launcher.additional_parameters={wrap: x}",
    "hydra.launcher.submitit_folder=/tmp/evil",
    "hydra.launcher.partition='gpu\\ntouch ran'",
    "hydra.launcher.partition='gpu;touch ran'",
    "hydra.launcher.partition=${oc.env:SECRET}",
    "hydra/launcher=../../evil",
    "hydra/job_logging=default",
    "hydra.sweep.subdir=../../elsewhere",
    "hydra.sweep.subdir=/elsewhere",
    "hydra.mode=RUN",
    *[each for each in HARMFUL if each not in ("hydra/launcher=slurm", "hydra.sweep.dir=x")],
]


@pytest.mark.parametrize("override", HARMLESS)
def test_settings_are_taken(override):
    assert may_be_taken(override) and may_be_taken(override, hydra=True)


@pytest.mark.parametrize("override", HARMFUL)
def test_what_could_do_harm_is_not(override):
    assert not may_be_taken(override)


@pytest.mark.parametrize("override", OF_A_SWEEP)
def test_what_a_sweep_may_say_of_hydra(override):
    assert may_be_taken(override, hydra=True)


@pytest.mark.parametrize("override", NOT_OF_A_SWEEP)
def test_and_what_it_may_not(override):
    assert not may_be_taken(override, hydra=True)


# --- a run -------------------------------------------------------------------------------------------------


def write_run(folder, overrides):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"id": "x", "started": "now", "overrides": overrides}))


def test_where_to_write_is_not_taken():
    assert not may_be_taken("run_dir=/elsewhere")


@pytest.mark.parametrize("override", HARMFUL)
def test_a_run_that_was_handed_over_is_refused_by_name_and_taken_when_it_is_said(override, tmp_path):
    write_run(tmp_path, ["seed=3", override])
    named = f"run_dir={tmp_path}"
    with pytest.raises(UserError) as error:
        with_stored_overrides([named])
    again = str(error.value).partition("If they are yours, repeat them: ")[2]
    assert again == f"python -m vidtrain.train {shlex.quote(named)} {shlex.join([override])}"
    assert with_stored_overrides([named, override])[0] == ["seed=3", named, override]


def test_a_record_without_overrides_is_refused(tmp_path):
    for damaged in ("seed=1", [1], [["seed=1"]], {"a": 1}):
        write_run(tmp_path, damaged)
        with pytest.raises(UserError, match="its overrides are not a list of texts"):
            with_stored_overrides([f"run_dir={tmp_path}"])


def test_the_program_itself_runs_nothing(tmp_path, monkeypatch, capsys):
    from vidtrain.train import main

    ran = tmp_path / "ran"
    (tmp_path / "evil.yaml").write_text(f"_target_: os.mkdir\n_args_: [{ran}]\n")
    for override in (
        f"loss={{_target_: os.mkdir, _args_: ['{ran}']}}",
        f"loss={'../' * 20}{str(tmp_path)[1:]}/evil",
        f"+hydra.callbacks.x={{_target_: os.mkdir, _args_: ['{ran}']}}",
        f"--config-dir={tmp_path}",
    ):
        write_run(tmp_path / "run", [override])
        monkeypatch.setattr(sys, "argv", ["train", f"run_dir={tmp_path}/run"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        assert "repeat them" in capsys.readouterr().err
        assert not ran.exists()


# --- a sweep -----------------------------------------------------------------------------------------------


def write_sweep(folder, hydra=(), task=("seed=0,1",), trials=(), started_in=None):
    folder.mkdir(parents=True, exist_ok=True)
    record = SweepRecord("vidtrain.train", list(hydra), list(task), str(started_in or folder), "now", "basic", "grid",
                         "top1", "max", 2, ["seed"], trials=list(trials))  # fmt: skip
    record.write(folder)


@pytest.mark.parametrize("override", NOT_OF_A_SWEEP)
def test_a_sweep_that_was_handed_over_goes_on_only_with_what_it_may_say(override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "sweep", hydra=[override], started_in=tmp_path)
    named = f"folder={tmp_path}/sweep"
    with pytest.raises(UserError, match="repeat them: .*vidtrain.sweep resume"):
        sweep.resume_arguments(["action=resume", named])
    if not override.startswith(("-", "hydra.mode=")) and "=" in override:
        assert override in sweep.resume_arguments(["action=resume", named, override])


def test_a_sweep_of_settings_goes_on_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path / "sweep", hydra=OF_A_SWEEP[:4], started_in=tmp_path)
    found = sweep.resume_arguments(["action=resume", f"folder={tmp_path}/sweep"])
    assert found == ["-m", *OF_A_SWEEP[:4], "seed=0,1", f"hydra.sweep.dir='{tmp_path}/sweep'"]


def test_programs_that_a_sweep_starts_import_nothing_from_where_it_was_started(tmp_path, monkeypatch):
    import os
    import subprocess

    (tmp_path / "there").mkdir()
    (tmp_path / "there/submitit.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    write_sweep(tmp_path / "sweep", started_in=tmp_path / "there")
    sweep.resume_arguments(["action=resume", f"folder={tmp_path}/sweep"])
    assert os.getcwd() == str(tmp_path / "there")
    subprocess.run([sys.executable, "-c", "import vidtrain"], check=True)
    subprocess.run([sys.executable, "-c", "import submitit"], check=False, capture_output=True)
    assert not (tmp_path / "ran").exists()


def test_the_trials_of_a_sweep_set_only_what_is_said_or_harmless():
    good = Trial(0, "0", ["seed=0", "optimizer._target_=mine.Sgd"])
    check_trials([good], {"optimizer._target_=mine.Sgd"}, "sweep.json")
    for bad in (
        good,
        Trial(1, "1", ["+logger.x={_target_: os.mkdir}"]),
        Trial(1, "1", ["name=${oc.env:SECRET}"]),
    ):
        with pytest.raises(UserError, match="sweep.json has trials with settings"):
            check_trials([bad], {"seed=0"}, "sweep.json")
    for folder in ("../x", "/x", "a/../../x"):
        with pytest.raises(UserError, match="folders of trials outside the sweep"):
            check_trials([Trial(0, folder, [])], set(), "sweep.json")


def test_trials_that_the_record_holds_are_not_run_with_what_nobody_said(tmp_path, monkeypatch, capfd):
    """Settings that change nothing that is computed tell no trials apart, so what stands there would be run."""
    ran = []
    write_sweep(tmp_path, trials=[Trial(0, "0", ["seed=0", "+logger.x={_target_: os.mkdir}"])])
    monkeypatch.setattr(sys, "argv", ["train", "-m", f"hydra.sweep.dir='{tmp_path}'", "seed=0,1"])
    with pytest.raises(SystemExit) as stop:
        launch("train", ran.append, lambda cfg: [])
    assert stop.value.code == 2 and not ran
    assert "has trials with settings that could do harm if somebody else wrote them" in capfd.readouterr().err


# --- a trial, and the study of its sweep -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruner", "trusted"),
    [
        ({"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 5}, True),
        ({"_target_": "optuna.pruners.NopPruner"}, True),
        ({"_target_": "os.mkdir"}, False),
        ({"_target_": "optuna.pruners.WilcoxonPruner"}, False),
        ({"_target_": "optuna.pruners.MedianPruner", "n": {"_target_": "os.mkdir"}}, False),
        ({"_target_": "optuna.pruners.MedianPruner", "n": "${oc.env:SECRET}"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_pruners_that_a_trial_may_name(pruner, trusted):
    assert is_trusted_pruner(pruner) == trusted


def test_a_trial_that_was_handed_over_builds_no_pruner_of_its_own(tmp_path, capsys):
    pytest.importorskip("optuna", minversion="4", reason="needs the extra optuna")
    from vidtrain.sweeps.optuna_sweeper import open_study, sqlite_file

    folder, ran = tmp_path / "sweep" / "0", tmp_path / "ran"
    folder.mkdir(parents=True)
    own, other = sqlite_file(tmp_path / "sweep/study.db"), sqlite_file(tmp_path / "other/study.db")
    open_study("sweep", own, "max").ask()
    pruner = {"_target_": "optuna.pruners.NopPruner"}

    def told(storage, pruner, **how):
        pruning = {"storage": storage, "study": "sweep", "pruner": pruner}
        trial = {
            "number": 0,
            "folder": "0",
            "overrides": [],
            "sweep": str(tmp_path / "sweep"),
            "pruning": pruning,
        }
        (folder / "trial.json").write_text(json.dumps(trial))
        sweep_trial.on_validation(folder, Ranks(torch.device("cpu")), make_console(is_main=True), **how)(0.5)
        return "so this trial is not pruned" in capsys.readouterr().out

    assert told(own, {"_target_": "os.mkdir", "_args_": [str(ran)]})
    assert told(other, pruner) and told("mysql://nowhere/x", pruner) and told(own + "?x=1", pruner)
    assert not (tmp_path / "other").exists() and not ran.exists()
    assert not told(own, pruner)
    told(own, {"_target_": "os.mkdir", "_args_": [str(ran)]}, started_by_sweep=True)  # which wrote that itself
    assert ran.exists()


@pytest.mark.parametrize(("drawn", "taken"), [("0.1", True), ("{_target_: os.mkdir}", False)])
def test_a_study_that_was_changed_draws_no_other_values(drawn, taken, tmp_path):
    optuna = pytest.importorskip("optuna", minversion="4", reason="needs the extra optuna")
    from vidtrain.sweeps.optuna_sweeper import open_study, sqlite_file, unsettled

    key, choices = "loss.label_smoothing", optuna.distributions.CategoricalDistribution
    study = open_study("sweep", sqlite_file(tmp_path / "study.db"), "max")
    study.ask({key: choices([drawn])})
    space = {key: choices(["0.1", "0.2"])}
    if taken:
        assert list(unsettled(study, space)) == [(0, [f"{key}=0.1"])]
        return
    with pytest.raises(UserError, match=r"trial 0 with .*\{_target_: os.mkdir\}"):
        list(unsettled(study, space))


def test_results_that_lie_where_the_next_job_will_are_not_opened(tmp_path):
    jobs, elsewhere = tmp_path / "sweep/.submitit/0", tmp_path / "elsewhere"
    (jobs / "123").mkdir(parents=True)
    elsewhere.mkdir()
    for made in (jobs / "123/123_0_result.pkl", jobs / "123/123_0_log.out", elsewhere / "mine.pkl"):
        made.touch()
    (jobs / "124").symlink_to(elsewhere)
    forget_results(tmp_path / "sweep", Trial(0, "0", []))
    assert sorted(str(each.relative_to(jobs)) for each in jobs.rglob("*")) == ["123", "123/123_0_log.out"]
    (tmp_path / "sweep/.submitit/1").symlink_to(tmp_path)
    forget_results(tmp_path / "sweep", Trial(1, "1", []))
    forget_results(tmp_path / "sweep", Trial(2, "2", []))
    assert (elsewhere / "mine.pkl").exists() and not (tmp_path / "sweep/.submitit/1").exists()


@pytest.mark.parametrize("change", [{"number": "0;x"}, {"folder": 1}, {"overrides": [1]}, {"overrides": "seed=1"}])
def test_a_record_of_other_types_is_refused(change, tmp_path):
    write_sweep(tmp_path, trials=[Trial(**{"number": 0, "folder": "0", "overrides": [], **change})])
    with pytest.raises(UserError, match="sweep.json cannot be read"):
        SweepRecord.read(tmp_path)
