"""A real Slurm on one machine: a controller and two nodes with two pretended GPUs each, on loopback, in one folder.

Needs Debian's packages slurmctld, slurmd, slurm-client and munge, and root, as which slurmd starts tasks.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
_SBIN = "/usr/sbin:/sbin"  # not in everybody's PATH

_CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
# the port where ranks meet comes from the job's number: another Slurm on this machine shall not have the same
FirstJobId={ports[0]}
AuthType=auth/munge
# a job waits so long and a second more before it starts anew: cred_expire, which is 2 minutes if not said
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1,sched_min_interval=100000
GresTypes=gpu
ReturnToService=2
KillWait=15
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]},{ports[2]}] CPUs=2 RealMemory=2000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=40
PartitionName=high Nodes=ALL State=UP PriorityTier=10
"""


def why_not() -> str | None:
    """What this machine lacks for a Slurm of its own; None where nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:{_SBIN}") is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "a Slurm of the tests' own needs root"


@dataclass(frozen=True)
class Job:
    """A batch job, and the file it prints to."""

    cluster: "Cluster"
    id: int
    log: Path

    @property
    def fields(self) -> dict[str, str]:
        """What Slurm knows of it: JobState, ExitCode, Restarts ..."""
        shown = self.cluster.ask("scontrol", "--oneliner", "show", "job", str(self.id))
        return {name: value for name, _, value in (field.partition("=") for field in shown.split())}

    @property
    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED ..."""
        return self.fields["JobState"]

    @property
    def text(self) -> str:
        """What it has printed, over all its starts."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, *, timeout_s: float = 300) -> dict[str, str]:
        """Its fields when it has ended for good; fails when it has not in time."""
        deadline = time.monotonic() + timeout_s
        while (fields := self.fields)["JobState"] not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            assert time.monotonic() < deadline, f"{fields['JobState']} after {timeout_s} s:\n{self.text}"
            time.sleep(0.2)
        return fields


class Cluster:
    """The daemons, and Slurm's commands aimed at them.

    Args:
        folder: for everything they write; the address of a socket in it may have 108 bytes at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.environment = kept | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{_SBIN}"}

    def start(self) -> None:
        """Starts munged, slurmctld and both slurmd; returns when both nodes are idle."""
        folder = self.folder
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        for name in ("gpu0", "gpu1"):
            (folder / name).touch()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        (folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName=n[1-2] Name=gpu File={folder}/gpu[0-1]\n")
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder, host=host, ports=_free_ports(3)))
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munge.seed"}
        self._start_daemon(
            "munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in files.items())
        )
        wait_until((folder / "munge.sock").exists, "munge")
        self._start_daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._start_daemon("slurmd", "-D", "-N", node)
        wait_until(self._is_idle, "both nodes")

    def stop(self) -> None:
        """Ends all jobs, then the daemons."""
        with suppress(AssertionError):  # of a controller that did not start
            self.cancel_all()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def cancel_all(self) -> None:
        """Ends all jobs; returns when they are gone."""
        self.ask("scancel", "--user=root")
        wait_until(lambda: not self.ask("squeue", "--noheader"), "the end of all jobs")

    def _start_daemon(self, *command: str) -> None:
        """A child of this process, with which it ends even when this one is killed."""
        guarded = ["setpriv", "--pdeathsig=TERM", *command]
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(guarded, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def _is_idle(self) -> bool:
        for daemon in self._daemons:
            assert daemon.poll() is None, (self.folder / "daemons.log").read_text()
        try:
            idle = self.ask("sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D")
        except AssertionError:  # the controller does not listen yet
            return False
        return idle.strip() == "2"

    def ask(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """What a command prints; it must succeed."""
        environment = self.environment | variables
        try:
            done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=True)
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"{command}: {error.stderr}") from error
        return done.stdout

    def submit(self, command: Sequence[str], *, cwd: Path, log: Path, variables: Mapping[str, str]) -> Job:
        """`sbatch COMMAND` in `cwd`, printing to `log`."""
        answer = self.ask("sbatch", "--parsable", f"--output={log}", *command, cwd=cwd, **variables)
        return Job(self, int(answer), log)

    def task_pid(self, job: Job, *, node: str) -> int:
        """The process of the first task that the job's first step has on `node`."""
        rows = [line.split() for line in self.ask("scontrol", "listpids", f"{job.id}.0", node).splitlines()[1:]]
        return int(next(pid for pid, _, _, local_id, _ in rows if local_id == "0"))


def _free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float = 60) -> None:
    """Returns when `condition()` is true; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)
