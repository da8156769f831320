"""The command line: what it asks for by name, and what it says to a mistake."""

import importlib
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fork_server import run_program
from hydra.core.override_parser.overrides_parser import OverridesParser

from vidtrain.app import check
from vidtrain.app.launch import find_faults
from vidtrain.build.checkpoint_loader import find_checkpoint
from vidtrain.config.overrides import flags_last, quoted
from vidtrain.config.targets import register_schemas
from vidtrain.errors import UserError
from vidtrain.runs.folder import with_stored_overrides

register_schemas()


def faults(*overrides):
    return [": ".join(fault) for fault in find_faults("train", overrides, check.check_run)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.epohcs=3", "trainer.epohcs: trainer has no key epohcs; did you mean epochs?"),
        ("optimzer=adamw", "optimzer: there is no key optimzer; did you mean optimizer?"),
        ("optimizer=adamv", "optimizer: group optimizer has no option adamv; did you mean adam"),
        ("model=vit3d_tini", "model: group model has no option vit3d_tini; did you mean vit3d_tiny?"),
        (
            "logger=[wandb,tensorbord]",
            "logger: group logger has no option tensorbord; did you mean tensorboard?",
        ),
        (
            "trainer.epochs=many",
            "trainer.epochs: Value 'many' of type 'str' could not be converted to Integer",
        ),
        ("optimizer.wieght_decay=0.1", "optimizer has no key wieght_decay; did you mean weight_decay?"),
        ("+optimizer.wieght_decay=0.1", "torch.optim.AdamW has no such argument"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' is not"),
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("optimizer.betas=[0.9]", "optimizer.betas: [0.9] is not a list of 2: a number, a number"),
        ("clip.sample_aspect=aply", "clip.sample_aspect: aply is unknown; did you mean apply?"),
        ("data.max_pixels=0", "data.max_pixels: 0 must be 1 or more"),
        ("clip.resize=vjepa", "clip.resize: vjepa is unknown; did you mean vjepa2?"),
        ("clip.resize=vjepa2", "clip.resize: vjepa2 is bilinear; set clip.interpolation=bilinear"),
        ("clip.interpolation=bicubik", "clip.interpolation: bicubik is unknown; did you mean bicubic?"),
        ("trainer.batch_size=15", None),
        (
            "trainer.accumulation=3",
            "trainer: trainer.batch_size=16 cannot be shared by 1 rank(s) x 3 accumulation",
        ),
        ("clip.frames=7", "clip.frames"),
        ("clip.size=30", "clip.size"),
        ("clip.size=big", "clip.size: big must be one number of pixels, or [height, width]"),
        ("clip.frame_step=null", "none is given; add clip.frame_step=4, say"),
        (
            "clip.short_video_policy=pad",
            "clip.short_video_policy: pad: choose one of repeat_last, wrap, stretch, error",
        ),
        ("data.decode_timeout_s=0", "data.decode_timeout_s: 0.0 must be above 0 seconds"),
        ("data.max_bytes=-1", "data.max_bytes: -1 must be above 0; null is no bound"),
        ("trainer.precision=fp8", "trainer.precision: fp8 is unknown; known: fp32, bf16, fp16"),
        ("trainer.monitor=top2", "trainer.monitor: top2 is unknown; did you mean top"),
        ("trainer.save_every=1", "trainer.save_every: '1' is not a duration: write 3ep"),
        ("schedule.lr.warmup=lots", "schedule: 'lots' is not a duration"),
        ("stage.full.duration=half", "stage.full.duration: 'half' is not a duration"),
        ("schedule.lr.final=-1", "schedule: schedule final=-1 must be a factor of 0 or more"),
        ("stage.full.layer_decay=-1", "stage: stage.full.layer_decay=-1 must be above 0"),
        ("model.encoder.drop_path=2", "model: model.encoder.drop_path=2 must be a share"),
        ("pretrained=5", "pretrained: pretrained=5 is not a name of weights; write a file"),
        ("pretrained=''", "pretrained: pretrained='' is not a name of weights; write a file"),
        ("schedule.lr=null", "schedule.lr: must be a part with a _target_; it is null"),
        ("schedule.lr=constant", "schedule.lr: must be a part with a _target_; it is 'constant'"),
        ("+schedule.momentum=1", "schedule.momentum: schedule has no such part; it has lr and weight_decay"),
        ("augmentation.train=null", "augmentation.train: must be a part with a _target_; it is null"),
        (
            "augmentation.mixing=cutmix",
            "augmentation.mixing: must be a part with a _target_, or null; it is 'cutmix'",
        ),
        ("model.encoder=null", "model.encoder: must be a part with a _target_; it is null"),
        ("dataset.source=null", "dataset.source: must be a part with a _target_; it is null"),
        ("model.fusion=vote", "model.fusion"),
        ("model.encoder.num_heads=5", "model.encoder.num_heads"),
        ("dataset.source._target_=vidtrain.data.sources.motion.Moton", "cannot be imported"),
        ("dataset.source._target_=builtins.dict", "builtins.dict cannot be a component"),
        ("augmentation.eval.crops=0", "augmentation: crops=0: must be 1 or more"),
        ("trainer.batch_size=0", "trainer.batch_size: 0 must be 1 or more"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_a_way_out(override, expected):
    found = faults(override)
    if expected is None:
        assert found == []
        return
    assert len(found) == 1, found
    assert expected in found[0]
    assert f"override '{override}'" in found[0] or "conf/" in found[0] or "the configuration" in found[0]


def test_all_faults_come_at_once():
    assert [line.split("'")[1].split("=")[0] for line in faults("trainer.epohcs=3", "model=vit3d_tini")] == [
        *("trainer.epohcs", "model")
    ]
    found = faults("+optimizer.wieght_decay=0.1", "clip.frames=7")
    assert len(found) == 2 and "+optimizer.wieght_decay" in found[0] and "clip.frames" in found[1]


def test_a_publishers_resize_names_all_that_it_does_not_go_with():
    found = faults("clip.resize=videomae", "clip.size=[32,48]", "data.prepared=short256_gop12")
    assert [line.partition("clip.resize: videomae ")[2] for line in found] == [
        "is bilinear; set clip.interpolation=bilinear (it is bicubic)",
        "crops squares; set clip.size to one number (it is [32, 48])",
        "needs the original files; set data.prepared=null (the copy short256_gop12 is already scaled)",
    ]


def test_clip_and_data_tell_all_their_faults():
    clip = [
        "clip.short_video_policy=pad",
        "clip.size=big",
        "clip.frames=-8",
        "clip.fps=-1",
        "clip.eval_clips=0",
    ]
    found = faults(*clip, "data.min_frames=0", "data.max_seconds=-2")
    keys = [line.split("': ")[1].split(":")[0] for line in found if line.startswith("override")]
    assert sorted(keys) == ["clip.eval_clips", "clip.fps", "clip.frames", "clip.short_video_policy",
                            "clip.size", "data.max_seconds", "data.min_frames"]  # fmt: skip


@pytest.mark.slow
def test_settings_of_a_source_are_tried_before_anything_is_read():
    found = faults("dataset=hmdb51", "dataset.source.fold=7", "optimizer.lr=-1")
    assert found[0] == (
        "override 'dataset.source.fold=7': dataset.source.fold: 7: choose 1, 2 or 3, or null for a new split"
    )
    assert "optimizer: Invalid learning rate" in found[1]
    assert "parts: Cannot merge DictConfig with ListConfig" in faults("dataset=mixture", "dataset.source.parts=[]")[0]
    assert faults("dataset=mixture", "dataset.source.parts.second.frames=8") == []
    assert "weight=0: must be above 0" in faults("dataset=mixture", "dataset.source.parts.first.weight=0")[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (r"init_from=_g(\d+)_", r"""( and ) have a special meaning in its grammar; .* write 'init_from="_g(\d+)_"'"""),
        ("init_from=lr=3/best.pt", """= has a special meaning in its grammar; .* write 'init_from="lr=3/best.pt"'"""),
        ("init_from=caf\xe9.pt", "\xe9 has a special meaning in its grammar"),
        ("dataset.flip=;", "; has a special meaning in its grammar"),
        ("optimizer.betas=[0.9", "is a bracket or a quote not closed?"),
        ("init_from='a", "is a bracket or a quote not closed?"),
        ("seed", "seed: is not an override: write key=value or group=option"),
        ("=3", "=3: is not an override"),
        ("dataset/x=3", "this program takes no group dataset/x; did you mean dataset?"),
        ("hydra/launcher=slrum", "hydra/launcher: In 'hydra/config': Could not find 'hydra/launcher/slrum'"),
    ],
)  # fmt: skip
def test_what_hydra_cannot_read_is_said_with_the_way_to_write_it(override, expected):
    (found,) = faults(override)
    assert found.startswith(f"override '{override}': ")
    place = -1
    for part in expected.split(".*"):  # what is said, in this order
        place = found.index(part, place + 1)


@pytest.mark.parametrize(
    "text",
    [
        r"_g(\d+)_",
        "a b",
        "a'b",
        'a"b',
        "a\\",
        'a\\"b',
        "x=1",
        "1",
        "null",
        "caf\xe9",
        "a,b",
        " ",
        ";",
        "[x",
        "true",
    ],
)
def test_quoted_text_comes_back_through_shell_and_hydra(text):
    (override,) = shlex.split(quoted("key", text))
    assert OverridesParser.create().parse_override(override).value() == text


def test_several_values_need_a_sweep():
    found = find_faults("train", ["seed=1,2"], check.check_run, sweeps=False)
    assert found == [("override 'seed=1,2'", "seed", "several values, 1,2: to start a run for each, add -m; for a "
                      "list, write 'seed=[1,2]'; for one text, write 'seed=\"1,2\"'")]  # fmt: skip


def test_a_path_without_a_key_is_told_its_key(tmp_path):
    from vidtrain import evaluate, split

    for name, key, check_of in (("split", "path", split.check), ("evaluate", "checkpoint", evaluate.check)):
        found = find_faults(name, [str(tmp_path)], check_of)
        assert found[0][1:] == (str(tmp_path), f"is a path without a key: write {quoted(key, str(tmp_path))}")


def test_a_program_names_no_group_that_it_does_not_take():
    from vidtrain import split

    found = find_faults("split", ["path=x", "out=y", "dataset=motion", "modle=x"], split.check)
    assert [fault[1:] for fault in found] == [
        ("dataset", "this program takes no group dataset"),
        ("modle", "there is no key modle; known: classes, frame_rate, ground_truth, group_column, group_pattern, "
         "listing, out, overwrite, path, paths, seed, shares, source"),
    ]  # fmt: skip


def test_prepare_and_audit_keep_their_index_where_training_does():
    from vidtrain import audit, prepare

    for name, program in (("prepare", prepare), ("audit", audit)):
        assert find_faults(name, ["dataset=motion", "data.index_root=/fast/index"], program.check) == []


def test_a_stored_override_is_named_with_its_file():
    for override in ("optimizer.gone=3", "clip.frames=0"):
        [(place, _, _)] = find_faults("train", [override], check.check_run, {override: "RUN/run.json"})
        assert place == f"override '{override}', stored in RUN/run.json"


def test_an_override_may_depend_on_a_later_choice():
    assert faults("optimizer.momentum=0.8", "optimizer=sgd") == []


def test_a_sweeps_first_values_are_checked():
    assert faults("optimizer.lr=1e-3,1e-4", "seed=range(3)") == []
    assert "has no option vit3d_tini" in faults("model=vit3d_tini,vit3d_tiny")[0]


def test_resuming_takes_the_stored_overrides_first(tmp_path):
    (tmp_path / "run.json").write_text('{"overrides": ["optimizer.lr=0.1", "seed=3", "model=vit3d_tiny"]}')
    said = [f"run_dir={tmp_path}", "seed=4"]
    taken = dict.fromkeys(["optimizer.lr=0.1", "model=vit3d_tiny"], f"{tmp_path}/run.json")
    assert with_stored_overrides(said) == ([*taken, *said], taken)
    assert with_stored_overrides(["seed=4"]) == (["seed=4"], {})
    (tmp_path / "run.json").write_text('{"overrides": ["+a.b=1", "c=1"]}')
    assert with_stored_overrides([f"run_dir={tmp_path}", "a.b=2", "+c=2"])[0] == [
        "+a.b=1",
        f"run_dir={tmp_path}",
        "a.b=2",
        "+c=2",
    ]
    assert with_stored_overrides(["run_dir=/none"]) == (["run_dir=/none"], {})


@pytest.mark.parametrize("name", ["train", "evaluate", "export", "audit", "prepare", "split", "compare"])
def test_help_says_what_can_be_chosen(name):
    """What it may import is asked by tests/test_startup.py."""
    found = run_program(name, "--help")
    assert found.returncode == 0, found.stderr
    assert f"python -m vidtrain.{name}" in found.stdout
    groups = re.findall(r"^ *([a-z]+): [a-z0-9_]+, ", found.stdout, re.MULTILINE)
    if name == "train":
        assert {"dataset", "model", "optimizer", "stage", "logger"} <= set(groups)
    else:
        others = {"split": [], "compare": [], "export": ["model"]}
        assert groups == (others[name] if name in others else ["dataset"])
        assert name in others or re.search(r"dataset: class_folders, .*motion", found.stdout)


def test_output_for_a_program_that_has_gone_ends_without_a_trace():
    code = """
import sys
from vidtrain.app.launch import launch
def task(cfg):
    while True:
        print("word")
sys.argv[1:] = ["out=nowhere"]
launch("split", task, lambda cfg: [])
"""
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "word\n"
    program.stdout.close()
    assert (program.wait(60), program.stderr.read()) == (141, "")


def test_cfg_job_resolves():
    found = run_program("train", "--cfg", "job", "--resolve", "optimizer=sgd")
    assert found.returncode == 0
    assert "_target_: torch.optim.SGD" in found.stdout and "${" not in found.stdout


def test_a_users_mistake_ends_with_status_2_and_no_traceback():
    found = run_program("train", "trainer.epohcs=3", "dataset=nothing")
    assert found.returncode == 2
    assert found.stderr.startswith("error: 2 faults in the configuration; nothing was started\n")
    assert "Traceback" not in found.stderr + found.stdout


def test_evaluate_says_that_it_needs_a_checkpoint():
    found = run_program("evaluate")
    assert found.returncode == 2
    assert "checkpoint: must be given: a run's folder, a checkpoint, or an exported file" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    best = tmp_path / "run/checkpoints/best.pt"
    with pytest.raises(UserError, match="there is no such file or folder"):
        find_checkpoint(str(best))
    with pytest.raises(UserError, match="is a folder, but no run's folder"):
        find_checkpoint(str(tmp_path / "run"))
    best.touch()
    assert find_checkpoint(str(tmp_path / "run")) == best


def test_an_optimizer_that_schedules_cannot_steer_is_refused():
    rest = ["~optimizer.weight_decay", "~optimizer.betas", "~optimizer.eps", "~optimizer.fused"]
    (found,) = faults("optimizer._target_=torch.optim.Rprop", *rest)
    assert "optimizer: Rprop has no weight_decay, which schedules set; choose another" in found
    (found,) = faults("optimizer._target_=torch.optim.LBFGS", *rest)
    assert "per-parameter options" in found


def test_an_optimizer_may_divide_its_groups_as_in_training(monkeypatch):
    def by_name(params, lr: float):
        assert all(group["lr_scale"] > 0 and group["wd_scale"] >= 0 for group in params)
        return torch.optim.AdamW([group for group in params if group["name"].startswith("head")], lr=lr)

    monkeypatch.setitem(sys.modules, "own_optimizers", SimpleNamespace(by_name=by_name))
    rest = [f"~optimizer.{key}" for key in ("weight_decay", "betas", "eps", "fused")]
    assert faults("optimizer._target_=own_optimizers.by_name", *rest) == []


PROGRAMS = (
    "audit", "benchmark", "compare", "evaluate", "export", "predict", "prepare", "split", "sweep", "train",
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("trainer=default -m optimizer.lr=1,2", "trainer=default optimizer.lr=1,2 -m"),
        ("-m a=1 b=2", "a=1 b=2 -m"),
        ("a=1 --cfg job b=2 --resolve c=3", "a=1 b=2 c=3 --cfg job --resolve"),
        ("a=1 -i b=1", None),  # its value would be one of a few words
        ("a=1 -cn evaluate b=2 -i all ~c", "a=1 b=2 ~c -cn evaluate -i all"),
        ("a=1 --info", "a=1 --info"),
        ("-m", "-m"),
        ("", ""),
    ],
)
def test_flags_may_stand_anywhere(given, taken):
    if taken is None:
        with pytest.raises(UserError, match="argument --info/-i: invalid choice"):
            flags_last(given.split())
    else:
        assert flags_last(given.split()) == taken.split()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer=default", "--multirn", "a=1"], "there is no flag --multirn; did you mean --multirun?"),
        (["a=1", "--lr", "3", "b=2"], "there is no flag --lr; settings are written without dashes: lr=VALUE"),
        (["--clip.size=3"], "there is no flag --clip.size=3; settings are written without dashes: clip.size=3"),
        (["a=1", "-cn"], "argument --config-name/-cn: expected one argument"),
    ],
)  # fmt: skip
def test_every_program_answers_to_flags_that_are_none(program, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"vidtrain.{program}").main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: the command line cannot be read: {message}\n"


@pytest.mark.slow
def test_a_sweep_flag_between_overrides():
    found = run_program("train", "trainer=default", "-m", "optimizer.lrr=1,2", "trainer.epohcs=3")
    assert found.returncode == 2 and found.stderr.startswith("error: 2 faults in the configuration")
    assert "optimizer has no key lrr; did you mean lr?" in found.stderr and "usage" not in found.stderr
    shown = run_program("train", "model=vit3d_micro", "--cfg", "job", "optimizer.lr=0.125")
    assert shown.returncode == 0 and "lr: 0.125" in shown.stdout


def test_help_that_nobody_reads_to_its_end_leaves_no_traceback():
    program = subprocess.Popen(
        [sys.executable, "-m", "vidtrain.train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.close()
    said = program.stderr.read()
    assert (program.wait(), said) == (141, b"")
