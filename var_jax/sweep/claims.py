"""Claim files, one per attempt at a run, which keep two submitters from starting the same attempt.

The process that starts a run first creates `<run>/claims/0001.json`; the one that first finds
attempt 1 dead creates `0002.json`, and so on. A claim is created exclusively (O_EXCL) and never
deleted: if two submitters find an attempt dead, one creates the next claim and the other finds it
there. A shared file system must make O_EXCL atomic, as local ones and NFS from version 3 on do. A
bucket has no O_EXCL and must support conditional creation instead (GCS: generation match 0, S3:
If-None-Match), which gcsfs and s3fs use for fsspec's `mode="create"`.

The job of an attempt that was considered dead may start after all. Therefore a run checks itself
whether its claim is the newest (`var_jax.train.workdir.START_TOKEN_ENV`), and ends when it is not.
"""

import dataclasses
import json
import os
import platform
import time
from typing import NamedTuple

import psutil
from etils import epath

from var_jax.io import atomic
from var_jax.train.workdir import REFUSED

# How long the first report of a job without a recorded id is awaited: its submitter may have died
# before it recorded the id, and kubectl may take minutes. A job that starts later finds that its
# claim is not the newest, and ends (`workdir.START_TOKEN_ENV`).
SUBMIT_SECONDS = 600.0
SAME_BIRTH = 2.0  # seconds by which a process's start time may seem to change with the clock


@dataclasses.dataclass(frozen=True)
class Claim:
    """One attempt at a run.

    Attributes:
      attempt: from 1.
      host, pid, born: the process that submitted it; its start time `born` distinguishes it from a
        later process of the same pid.
      created, heartbeat: when it was claimed, and when its job was last known to exist; seconds
        since 1970.
      backend, job: the engine's name, and the job's id once it is submitted.
      after, reached: how the previous attempt ended ("" for the first), and its last reported step.
      abandoned: whether the submission failed, so that there is no job.
    """

    attempt: int
    host: str
    pid: int
    born: float
    created: float
    heartbeat: float
    backend: str
    job: str = ""
    after: str = ""
    reached: int = 0
    abandoned: bool = False


class ProcessId(NamedTuple):
    """The unique identity of a process.

    Attributes:
      host: name of its host.
      pid: its id there.
      born: when it started, in seconds since 1970.
    """

    host: str
    pid: int
    born: float


def process_id(pid: int) -> ProcessId:
    """Returns the identity of a process of this host."""
    return ProcessId(platform.node(), pid, psutil.Process(pid).create_time())


def process_alive(host: str, pid: int, born: float) -> bool | None:
    """Returns whether a process is running (a zombie is not); None on any host but its own."""
    if host != platform.node():
        return None
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - born) < SAME_BIRTH
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def create(
    run: epath.Path, attempt: int, backend: str, after: str = "", reached: int = 0
) -> Claim | None:
    """Claims an attempt for this process; returns None if another process has claimed it."""
    host, pid, born = process_id(os.getpid())
    now = time.time()
    claim = Claim(attempt, host, pid, born, now, now, backend, after=after, reached=reached)
    (run / "claims").mkdir(parents=True, exist_ok=True)
    return claim if create_exclusively(file(run, attempt), _text(claim)) else None


def replace(run: epath.Path, claim: Claim, **changes) -> Claim:
    """Writes a claim with changes, atomically, and returns it.

    Only the process that created the claim may call this, except to update its heartbeat.
    """
    claim = dataclasses.replace(claim, **changes)
    atomic.write(file(run, claim.attempt), _text(claim))
    return claim


def read(run: epath.Path) -> list[Claim]:
    """Returns all claims of a run in the order of attempts.

    A claim that is just being written, or was truncated by a crash, has no job.
    """
    directory = run / "claims"
    claims_read = []
    for path in sorted(directory.glob("[0-9]*.json")) if directory.is_dir() else []:
        try:
            claims_read.append(Claim(**json.loads(path.read_text())))
        except (ValueError, TypeError):
            written = path.stat().mtime
            claims_read.append(Claim(int(path.stem), "", 0, 0.0, written, written, ""))
    return claims_read


def file(run: epath.Path, attempt: int) -> epath.Path:
    """Returns the path of an attempt's claim; names sort in the order of attempts."""
    return run / "claims" / f"{attempt:04d}.json"


def refusal(run: epath.Path, attempt: int) -> str:
    """Returns the user's mistake for which the run ended an attempt (exit code 2), or ""."""
    try:
        return " ".join(file(run, attempt).with_suffix(REFUSED).read_text().split())
    except OSError:
        return ""


def create_exclusively(path: epath.Path, text: str) -> bool:
    """Creates a file with this text; returns False if the file already exists."""
    try:
        if "://" in str(path):
            from fsspec.core import url_to_fs

            system, name = url_to_fs(str(path))
            system.pipe_file(name, text.encode(), mode="create")
        else:
            with open(path, "x") as stream:  # O_EXCL
                stream.write(text)
    except FileExistsError:
        return False
    return True


def _text(claim: Claim) -> str:
    return json.dumps(dataclasses.asdict(claim)) + "\n"
