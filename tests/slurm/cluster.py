"""A SLURM of one node on this machine, in a directory of its own, for the tests that need a real
one.

Debian's packages `slurm-wlm` and `munge`, without cgroups and without an accounting database. Every
process that is started here is stopped here.
"""

import contextlib
import dataclasses
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
# cred_expire: a requeued job waits until its old credential has expired, 120 s unless told.
# KillWait: seconds
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
KillWait=60
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs that a SLURM needs and this machine lacks."""
    return [program for program in PROGRAMS if not _which(program)]


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What a test needs of a running SLURM; SLURM_CONF in the environment makes its commands talk
    to it."""

    directory: Path

    def run(self, *argv: str, seconds: float = 60, **kwargs) -> str:
        done = subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=seconds, **kwargs
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """State of a job or array task in the controller's memory; "" for none."""
        done = subprocess.run(
            ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip()

    def wait(self, job: str, *states: str, seconds: float = 120) -> str:
        """Waits for one of the states, and tells which."""
        until = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < until, (
                f"job {job} is {state or 'unknown'} after {seconds} s, not {states}"
            )
            time.sleep(0.2)
        return state


@contextlib.contextmanager
def started(directory: Path, cpus: int = 4) -> Iterator[Cluster]:
    """Runs the daemons while the context lasts, with SLURM_CONF set in this process's environment.

    Args:
      directory: empty; keys, sockets, logs and spools go there. Short, as a socket's path may have
        107 characters.
      cpus: processors that the node says it has, whatever the machine has.
    """
    daemons: list[subprocess.Popen] = []
    directory.chmod(0o755)
    for name in ("state", "spool"):
        (directory / name).mkdir()
    (directory / "munge.key").write_bytes(os.urandom(128))
    (directory / "munge.key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    ctld_port, slurmd_port = _free_ports(2)
    config = directory / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=host,
            directory=directory,
            ctld_port=ctld_port,
            slurmd_port=slurmd_port,
            cpus=cpus,
            user=_user(),
        )
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    try:
        daemons.append(
            _start(
                directory,
                "munged",
                "--foreground",
                "--force",
                f"--key-file={directory}/munge.key",
                f"--socket={directory}/munge.socket",
                f"--pid-file={directory}/munge.pid",
                f"--log-file={directory}/munge.log",
                f"--seed-file={directory}/munge.seed",
            )
        )
        _wait_until((directory / "munge.socket").exists, "munged opens its socket", directory)
        daemons.append(_start(directory, "slurmctld", "-D", "-c", "-f", str(config)))
        daemons.append(_start(directory, "slurmd", "-D", "-c", "-f", str(config), "-N", host))
        cluster = Cluster(directory)
        _wait_until(
            lambda: "idle" in _output("sinfo", "--noheader", "--format=%T"),
            "the node is idle",
            directory,
        )
        yield cluster
    finally:
        _end_jobs()
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def _end_jobs():
    """The daemons' end would not be that of what jobs run."""
    _output("scancel", "--quiet", "--signal=KILL", "--full", f"--user={_user()}")
    _output("scancel", "--quiet", f"--user={_user()}")
    until = time.monotonic() + 20
    while _output("squeue", "--noheader") and time.monotonic() < until:
        time.sleep(0.2)


def _start(directory: Path, program: str, *args: str) -> subprocess.Popen:
    with (directory / f"{program}.out").open("wb") as output:
        return subprocess.Popen(
            [_which(program) or program, *args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        return ""


def _wait_until(ready, what: str, directory: Path, seconds: float = 30):
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            logs = "\n".join(
                f"{file.name}: {file.read_text()[-800:]}"
                for file in directory.glob("*.[lo][ou][gt]")
            )
            raise AssertionError(f"waited {seconds} s until {what}\n{logs}")
        time.sleep(0.2)


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
