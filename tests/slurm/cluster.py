"""A private SLURM of a few fake nodes on this machine, for the tests: no systemd, no accounting, root only.

Every daemon is a child of the tests and is ended by its process id. Its files, key, sockets and ports are its own, so
a SLURM that is already here is not touched.
"""

import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ports import free_ports

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
UP_SECONDS = 30.0
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1

CONF = """
ClusterName=fake
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobRequeue=1
KillWait=15
MinJobAge=600
SlurmdTimeout=8
SlurmctldTimeout=15
UnkillableStepTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory=2000
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=REQUEUE
PartitionName=high Nodes=n[1-{nodes}] MaxTime=INFINITE State=UP PriorityTier=20 PreemptMode=OFF
"""

# submitit asks sacct, which needs an accounting database: this answers `sacct -o JobID,State,NodeList -j ID`
SACCT = """#!/usr/bin/env python3
import re, subprocess, sys
print("JobID|State|NodeList")
for asked in [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == "-j"]:
    shown = subprocess.run(["scontrol", "-o", "show", "job", asked], capture_output=True, text=True).stdout
    for line in shown.splitlines():
        job = dict(re.findall(r"(\\w+)=(\\S*)", line))
        name = f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if "ArrayJobId" in job else job["JobId"]
        print(f"{name}|{job['JobState']}|{job['NodeList']}")
"""


def missing() -> str | None:
    """Why no cluster can be had here, or None."""
    absent = [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=_path()) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)} missing); apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a private SLURM of fake nodes needs root"
    return None


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """`nodes` fake nodes below `root`, from `start` to `stop`; `env` is what its clients need."""

    def __init__(self, root: Path, nodes: int):
        self.root = root
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._daemons: dict[str, subprocess.Popen] = {}
        bin_folder = root / "bin"
        self.env = {
            **os.environ,
            "SLURM_CONF": str(root / "slurm.conf"),
            "PATH": f"{bin_folder}:{_path()}",
            "OMP_NUM_THREADS": "1",
        }
        for folder in ("state", "log", "run", "munge", "bin", *(f"spool.{node}" for node in self.nodes)):
            (root / folder).mkdir(parents=True)
        (root / "munge").chmod(0o700)
        key = root / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        (bin_folder / "sacct").write_text(SACCT)
        (bin_folder / "sacct").chmod(0o755)
        port = free_ports(nodes + 1)
        words = {"host": socket.gethostname().split(".")[0], "root": root, "nodes": nodes, "port": port}
        conf = CONF.format(**words, first=port + 1, last=port + nodes)
        (root / "slurm.conf").write_text(conf)

    def start(self) -> None:
        munge = {name: f"--{name}-file={self.root}/munge/{name}" for name in ("key", "pid", "log", "seed")}
        sock = self.root / "run" / "munge.sock"
        self._start("munged", "munged", "--foreground", f"--socket={sock}", *munge.values())
        wait_for(sock.exists, "munge's socket")
        self._start("slurmctld", "slurmctld", "-D", "-i", "-f", self.env["SLURM_CONF"])
        for node in self.nodes:
            self.node_start(node)
        for node in self.nodes:
            wait_for(lambda node=node: self.node_state(node) == "idle", f"{node} to be idle", UP_SECONDS)

    def stop(self) -> None:
        with suppress(subprocess.SubprocessError, OSError, RuntimeError):  # it may never have come up
            self.run("scancel", "--user=root")
        with suppress(TimeoutError):
            wait_for(lambda: not self._processes(), "the jobs to end", 1.0)
        for name in reversed(list(self._daemons)):
            daemon = self._daemons[name]
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        for process in self._processes():  # what a killed node's daemon no longer looks after
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a client says. Raises where it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, cwd=cwd)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    # --- nodes

    def node_start(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node, "-f", self.env["SLURM_CONF"])

    def node_kill(self, node: str) -> None:
        """A power cut: the node's daemon, its step managers and all that they hold are gone at once."""
        managers = [pid for pid in _pids() if _command(pid).startswith("slurmstepd: ") and self._logs_of(pid, node)]
        victims = [self._daemons.pop(node).pid, *managers, *self._processes(node)]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").strip()

    def _processes(self, node: str | None = None) -> list[int]:
        """Tasks of this cluster's jobs, of one node or of all."""
        wanted = {f"SLURM_CONF={self.env['SLURM_CONF']}"} | ({f"SLURMD_NODENAME={node}"} if node else set())
        found = []
        for pid in _pids():
            with suppress(OSError):
                words = set(Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"))
                if wanted <= words and any(word.startswith("SLURMD_NODENAME=") for word in words):
                    found.append(pid)
        return found

    def _logs_of(self, pid: int, node: str) -> bool:
        log = str(self.root / "log" / f"slurmd.{node}.log")
        with suppress(OSError):
            return any(os.readlink(each) == log for each in Path(f"/proc/{pid}/fd").iterdir())
        return False

    # --- jobs

    def job(self, job: str) -> dict[str, str]:
        """What scontrol tells of a job."""
        for _ in range(20):  # a controller that has just lost a node can be late to answer
            with suppress(RuntimeError, subprocess.TimeoutExpired):
                return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "-o", "show", "job", job)))
            time.sleep(0.5)
        raise RuntimeError(f"scontrol tells nothing of job {job}")

    def restarts(self, job: str) -> int:
        return int(self.job(job)["Restarts"])

    def release(self, job: str) -> None:
        """Lets a requeued job that waits start now, and not in two minutes."""
        time.sleep(1.2)  # nodes refuse what is started again within the second in which it was ended
        while self.job(job)["JobState"] == "PENDING":
            with suppress(RuntimeError):  # it has started by itself
                self.run("scontrol", "update", f"jobid={job}", "starttime=now")
            time.sleep(0.3)

    def tasks(self, job: str, module: str) -> list[int]:
        """The processes of a job that run a Python module, in the order of their ranks."""
        found: dict[int, list[int]] = {}
        for pid in self._processes():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                env = dict(word.partition("=")[::2] for word in words)
                if env.get("SLURM_JOB_ID") == job and "SLURM_STEP_ID" in env and module in _command(pid):
                    found.setdefault(int(env["SLURM_PROCID"]), []).append(pid)
        # its workers are forked by it; numbers tell nothing, as they start anew now and then
        return [next(pid for pid in found[rank] if _parent(pid) not in found[rank]) for rank in sorted(found)]

    def _start(self, name: str, *command: str) -> None:
        with open(self.root / "log" / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # none outlives the tests
            )


@contextmanager
def cluster(nodes: int) -> Iterator[Cluster]:
    """A cluster in a folder of its own, which goes with it. Not one of pytest's: munge wants its socket below folders
    that all may enter."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as root:
        Path(root).chmod(0o755)
        made = Cluster(Path(root), nodes)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0, every: float = 0.1) -> object:
    """The first true answer of `condition`. Raises where there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)
    return answer


def _pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    return ""


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
