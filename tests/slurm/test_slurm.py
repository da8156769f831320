"""Runs and sweeps on a real SLURM, of fake nodes on this machine, and what can happen to them there."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_run import small

from vidtrain.training import checkpoint

sys.path.append(str(Path(__file__).parent))
from clock import TIMED
from cluster import cluster, missing, wait_for

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "experiments" / "slurm" / "train.sbatch"
MODULE = "vidtrain.train"
PATIENCE = 300  # seconds for what takes a few on a machine with nothing else to do

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

OWN = "optimizer._target_=throttled.Throttled"  # of another package: a folder does not bring it along by itself
SMALL = small(
    "augmentation=standard",
    "model.encoder.drop_path=0.2",
    "logger=none",
    OWN,
    "trainer.epochs=36",  # of 5 steps
    "trainer.batch_size=6",
    "trainer.num_workers=1",
    "trainer.log_every=1",
    "trainer.eval_every=12ep",
    "trainer.save_every=2ep",
    "trainer.rank_timeout=15",
    train=3,
    depth=2,
)
# Few steps outlast what is done to a run, and none needs pictures
THROTTLED = """
import os
import time
from pathlib import Path

import torch
from vidtrain.runs.report import Classifying

Classifying.draw_pictures = lambda *_: None

class Throttled(torch.optim.AdamW):
    def step(self, closure=None):
        pace = Path(os.environ["PACE"])
        try:
            time.sleep(float(pace.read_text()))
        except FileNotFoundError:
            pass
        return super().step(closure)
"""


@contextmanager
def slow_steps(slurm, seconds):
    """Within it, each step of every run takes so much longer."""
    pace = slurm.work / "pace"
    write_pace(slurm, seconds)
    try:
        yield
    finally:
        pace.unlink()


def write_pace(slurm, seconds):
    (slurm.work / "pace.new").write_text(str(seconds))
    (slurm.work / "pace.new").rename(slurm.work / "pace")  # no reader finds it empty


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Three nodes, and a folder where jobs start."""
    root = tmp_path_factory.mktemp("slurm")
    with cluster(3) as made:
        made.env |= {"PYTHON": sys.executable, "PYTHONPATH": f"{ROOT}:{root}", "SLURM_OVERLAP": "1"}
        made.env |= {"PACE": str(root / "pace")}
        made.work = root
        (root / "throttled.py").write_text(THROTTLED)
        (root / "experiments").symlink_to(ROOT / "experiments")
        yield made


def submit(slurm, folder, *overrides, options=()):
    """A run of two processes on two nodes; the job's id."""
    output = slurm.work / f"{folder}.out"
    arguments = [f"run_dir={folder}", f"data_root={slurm.work}", *SMALL, *overrides]
    return slurm.run(
        "sbatch",
        "--parsable",
        "--nodes=2",
        f"--output={output}",
        *options,
        str(SBATCH),
        *arguments,
        cwd=slurm.work,
    ).strip()


def output_of(slurm, folder):
    path = slurm.work / f"{folder}.out"
    return path.read_text() if path.exists() else ""


def ended(slurm, job, seconds=PATIENCE):
    """What is known of a job when it has ended; one that was requeued is let start at once."""

    def is_over():
        found = slurm.job(job)
        if found["JobState"] == "PENDING" and int(found["Restarts"]):
            slurm.release(job)
        return found["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    wait_for(is_over, f"job {job} to end", seconds, every=0.2)
    return slurm.job(job)


def attempts(slurm, folder):
    path = slurm.work / folder / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def reach(slurm, job, folder, attempt):
    """Waits until the attempt of that number (from 1) has taken some steps, and saved; requeued jobs are let start at
    once."""

    def there():
        if slurm.job(job)["JobState"] == "PENDING" and slurm.restarts(job):
            slurm.release(job)
        started = [row for row in attempts(slurm, folder) if row["event"] == "started"]
        metrics = slurm.work / folder / "metrics.jsonl"
        steps = re.findall(r'"step": ?(\d+)', metrics.read_text()) if metrics.exists() else []
        return len(started) >= attempt and steps and int(steps[-1]) >= started[-1]["step"] + 12  # two epochs are saved

    try:
        wait_for(there, f"steps of attempt {attempt}", PATIENCE, every=0.1)
    except TimeoutError as error:
        error.add_note(output_of(slurm, folder)[-5000:])
        raise


def record_of(folder):
    """What a run leaves, without what the clock decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for rank in (0, 1):
        with open(folder / f"steps_rank{rank}.csv", newline="") as file:
            rows += list(csv.DictReader(file))
    rows.append(json.loads((folder / "summary.json").read_text()))
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(slurm):
    job = submit(slurm, "undisturbed")
    found = ended(slurm, job)
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), output_of(slurm, "undisturbed")
    return slurm.work / "undisturbed"


def test_a_run_of_two_nodes_meets_without_torchrun(slurm, undisturbed):
    assert "training on cpu x 2" in output_of(slurm, "undisturbed")
    assert [row["event"] for row in attempts(slurm, "undisturbed")] == ["started", "finished"]
    assert "verdict finished, job RUNNING, restarts 0 of 100" in output_of(slurm, "undisturbed")


def requeue(slurm, job):
    slurm.run("scontrol", "requeue", job)


def preempt(slurm, job):
    """A job of a partition that goes first takes all nodes."""
    other = slurm.run(
        "sbatch", "--parsable", "-p", "high", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 0.2"
    )
    ended(slurm, other.strip())


def run_out_of_time(slurm, job):
    """The time limit of the job is brought near: it has asked to be told two minutes ahead."""
    hours, minutes, seconds = (int(each) for each in slurm.job(job)["RunTime"].split(":"))
    elapsed = 60 * hours + minutes + seconds / 60
    before = slurm.restarts(job)
    slurm.run("scontrol", "update", f"jobid={job}", f"timelimit={math.ceil(elapsed + 0.75)}")
    # SLURM looks at time limits every 30 seconds
    wait_for(lambda: slurm.restarts(job) > before, "the job to be requeued", PATIENCE)
    slurm.run("scontrol", "update", f"jobid={job}", "timelimit=60")


def kill_a_rank(slurm, job):
    os.kill(slurm.tasks(job, MODULE)[1], signal.SIGKILL)


def cut_the_power(slurm, job, which):
    """Of the first node, where the batch script is, or of the other one."""
    node = slurm.run("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()[which]
    slurm.node_kill(node)
    before = slurm.restarts(job)
    if which:  # what SLURM finds out by itself of the first node, in half a minute, it is told of the other
        slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")
    wait_for(lambda: slurm.restarts(job) > before, "the job to be requeued", PATIENCE)
    slurm.node_start(node)


def cut_the_first_node(slurm, job):
    cut_the_power(slurm, job, 0)


def cut_the_other_node(slurm, job):
    cut_the_power(slurm, job, 1)


PACE, CRAWL = 0.1, 1.0  # seconds: on the way to an event, and during it
EVENTS = (
    requeue,
    preempt,
    run_out_of_time,
    kill_a_rank,
    cut_the_first_node,
    cut_the_other_node,
)


def test_a_run_that_everything_happens_to_ends_with_the_same_bits(slurm, undisturbed):
    """One job, disturbed again and again in the middle of its steps, against one that was left alone."""
    ids = set()
    with slow_steps(slurm, PACE):
        job = submit(slurm, "disturbed", options=["--time=60"])
        for number, event in enumerate(EVENTS, start=1):
            reach(slurm, job, "disturbed", number)
            ids.add(json.loads((slurm.work / "disturbed/run.json").read_text())["id"])
            before = slurm.restarts(job)
            write_pace(slurm, CRAWL)
            event(slurm, job)
            what = f"a requeue after {event.__name__}"
            wait_for(lambda before=before: slurm.restarts(job) > before, what, PATIENCE)
            write_pace(slurm, PACE)
    found = ended(slurm, job)

    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), (
        f"{found}\n{attempts(slurm, 'disturbed')[-4:]}\n{output_of(slurm, 'disturbed')[-3000:]}"
    )
    assert int(found["Restarts"]) >= len(EVENTS)  # a node that has come back may end a job's next attempt, too
    assert len(ids) == 1  # the same run in W&B
    folder = slurm.work / "disturbed"
    for name in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(each / "checkpoints" / name) for each in (undisturbed, folder))
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
        assert {**one["state"], "seconds": 0} == {**other["state"], "seconds": 0}
    assert record_of(undisturbed) == record_of(folder)
    rows = attempts(slurm, "disturbed")
    assert sum(row["event"] == "started" for row in rows) >= len(EVENTS) + 1
    stops = [row["signal"] for row in rows if row["event"] == "stopped"]
    assert stops[:3] == ["SIGTERM", "SIGTERM", "SIGUSR1"]
    assert rows[-1]["event"] == "finished"


DEFECT = """
import os
import torch

class Broken(torch.optim.SGD):
    def step(self):
        super().step()
        if os.environ["SLURM_PROCID"] == "1":
            raise ZeroDivisionError("a defect")
"""


def test_a_defect_is_tried_twice_and_seen_by_slurm(slurm, undisturbed):
    (slurm.work / "broken.py").write_text(DEFECT)
    job = submit(slurm, "defect", "optimizer=sgd", "optimizer._target_=broken.Broken")
    wait_for(lambda: slurm.restarts(job) == 1, "the second try", PATIENCE)
    slurm.release(job)
    found = ended(slurm, job)
    said = output_of(slurm, "defect")
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "1"), said
    assert found["ExitCode"] in ("1:0", "143:0")
    assert said.count("ZeroDivisionError: a defect\n") >= 2
    failed = [row for row in attempts(slurm, "defect") if row["event"] == "failed"]
    assert [(row["rank"], row["cause"], row["again"]) for row in failed] == [
        (1, "ZeroDivisionError: a defect", True),
        (1, "ZeroDivisionError: a defect", False),
    ]


def test_a_sweep_that_is_preempted_and_loses_its_launcher_goes_on_where_it_was(slurm):
    """Four trials, two at a time, a job for each; two diverge. No trial is run twice, and none is forgotten."""
    folder = slurm.work / "sweep"
    command = [
        sys.executable, "-m", MODULE, "-m", "hydra/launcher=slurm", "hydra.launcher.array_parallelism=2",
        "hydra.launcher.look_seconds=2",
        "hydra.sweep.dir=sweep", f"data_root={slurm.work}", *SMALL,
        "optimizer.lr=1e-3,1e30", "seed=0,1", "trainer.clip_grad=null",
    ]  # fmt: skip
    with slow_steps(slurm, PACE), open(slurm.work / "launcher.out", "wb") as out:
        launcher = subprocess.Popen(command, env=slurm.env, cwd=slurm.work, stdout=out, stderr=out)
        jobs = [wait_for(lambda at=at: job_of(folder, at), f"the job of trial {at}", PATIENCE) for at in (0, 1)]
        for at, job in enumerate(jobs):
            reach(slurm, job, f"sweep/{at}", 1)
            write_pace(slurm, CRAWL)
        launcher.kill()
        launcher.wait()
        preempt(slurm, jobs[0])
        for at, job in enumerate(jobs):
            wait_for(lambda job=job: slurm.restarts(job) == 1, f"a requeue of trial {at}", PATIENCE)
            slurm.release(job)
    resume = [sys.executable, "-m", "vidtrain.sweep", "resume", "sweep", OWN]
    done = subprocess.run(resume, env=slurm.env, cwd=slurm.work, capture_output=True, text=True, timeout=PATIENCE)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "2 finished, 2 diverged" in said, said
    assert json.loads((folder / "2/outcome.json").read_text())["status"] == "diverged"
    for at in (0, 1):
        summary = json.loads((folder / str(at) / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("finished", 180)
        events = [(row["event"], row["job"]) for row in attempts(slurm, f"sweep/{at}") if "job" in row]
        assert events == [("started", jobs[at]), ("started", jobs[at])]  # the same job, not another
        assert [row["event"] for row in attempts(slurm, f"sweep/{at}")][1::2] == ["stopped", "finished"]
    states = {}
    for at in range(4):
        found = ended(slurm, job_of(folder, at))
        assert found["JobName"] == f"motion-{at}"
        states[at] = (found["JobState"], found["ExitCode"], found["Restarts"])
    well, badly = ("COMPLETED", "0:0", "1"), ("FAILED", "2:0", "0")
    assert states == {0: well, 1: well, 2: badly, 3: badly}

    again = subprocess.run(resume, env=slurm.env, cwd=slurm.work, capture_output=True, text=True, timeout=PATIENCE)
    assert "4 trials, 0 to run" in again.stdout, again.stdout + again.stderr
    for at in range(4):
        assert job_of(folder, at)  # still the only one


def job_of(sweep, trial):
    """The id of the one job that was submitted for a trial, or None."""
    found = list((sweep / ".submitit" / str(trial)).glob("[0-9]*/"))
    assert len(found) <= 1
    return found[0].name if found else None


def test_one_run_for_a_folder_and_cancelling_it(slurm, undisturbed):
    """A job that would take long holds its folder, and is cancelled for good."""
    with slow_steps(slurm, PACE):
        job = submit(slurm, "cancelled", "trainer.epochs=4000")
        reach(slurm, job, "cancelled", 1)
        refused = subprocess.run(
            ["srun", "-n1", "-N1", sys.executable, "-m", MODULE, "run_dir=cancelled", OWN],
            env=slurm.env, cwd=slurm.work, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert refused.returncode == 2 and "the run folder cancelled is in use by process" in refused.stderr
        slurm.run("scancel", job)
        found = ended(slurm, job)
    wait_for(lambda: not slurm.tasks(job, MODULE), "its processes to end")
    assert (found["JobState"], slurm.job(job)["JobState"]) == ("CANCELLED", "CANCELLED")
    assert attempts(slurm, "cancelled")[-1]["event"] == "stopped"  # and it can be resumed by hand
