"""Who may start a run: claim files, one an attempt, so that two submitters never start the same run
twice.

`<run>/claims/0001.json` is created by whoever starts the run first, `0002.json` by whoever first
finds attempt 1 dead, and so on. A claim is created exclusively (O_EXCL) and never deleted: of two
submitters that find an attempt dead, one creates the next claim and the other finds it there. On a
shared file system this needs O_EXCL to be atomic, as local ones and NFS from version 3 on make it.
A bucket has no O_EXCL; it needs creation on the condition that no object is there (GCS: generation
match 0, S3: If-None-Match), which gcsfs and s3fs do at fsspec's `mode="create"`.

An attempt may be taken for dead and its job start after all. Therefore a run looks itself whether
its claim is the newest (`var_jax.train.workdir.START_TOKEN_ENV`), and ends when it is not.
"""

import dataclasses
import json
import os
import platform
import time

import psutil
from etils import epath

from var_jax.io import atomic
from var_jax.train.workdir import REFUSED

# A submitter that is far away or died may have a job that it has not noted, as kubectl may take
# minutes: so long is the job's first word awaited. One that comes later finds that its claim is not
# the newest, and ends (`workdir.START_TOKEN_ENV`).
SUBMIT_SECONDS = 600.0
SAME_BIRTH = 2.0  # seconds by which a process's birth may seem to move when the clock is set


@dataclasses.dataclass(frozen=True)
class Claim:
    """One attempt at a run.

    Attributes:
      attempt: from 1.
      host, pid, born: the process that submitted it; `born` tells it from a later one of the same
        pid.
      created, heartbeat: when it was claimed, and when its job was last known to exist; seconds
        since 1970.
      backend, job: the engine's name, and the job's id once it is submitted.
      after, reached: how the attempt before ended ("" for the first), and the last step that it
        told.
      abandoned: the submission failed; there is no job.
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


def process_id(pid: int) -> tuple[str, int, float]:
    """(host, pid, birth) of a process of this host: an identity that no later process has."""
    return platform.node(), pid, psutil.Process(pid).create_time()


def process_alive(host: str, pid: int, born: float) -> bool | None:
    """Whether that very process runs (a zombie does not); None on another host than its own."""
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
    """The claim of an attempt in this process's name, or None when another process has it."""
    host, pid, born = process_id(os.getpid())
    now = time.time()
    claim = Claim(attempt, host, pid, born, now, now, backend, after=after, reached=reached)
    (run / "claims").mkdir(parents=True, exist_ok=True)
    return claim if create_exclusively(file(run, attempt), _text(claim)) else None


def replace(run: epath.Path, claim: Claim, **changes) -> Claim:
    """The claim with changes, written whole or not at all; only for the process that created it, or
    a heartbeat."""
    claim = dataclasses.replace(claim, **changes)
    atomic.write(file(run, claim.attempt), _text(claim))
    return claim


def read(run: epath.Path) -> list[Claim]:
    """All claims of a run, by attempt. One that is just being written, or was cut short by a crash,
    has no job."""
    directory = run / "claims"
    found = []
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else []:
        try:
            found.append(Claim(**json.loads(path.read_text())))
        except (ValueError, TypeError):
            written = path.stat().mtime
            found.append(Claim(int(path.stem), "", 0, 0.0, written, written, ""))
    return found


def file(run: epath.Path, attempt: int) -> epath.Path:
    """Where the claim of an attempt stands; that of a later attempt has a greater name."""
    return run / "claims" / f"{attempt:04d}.json"


def refusal(run: epath.Path, attempt: int) -> str:
    """Why the run itself ended an attempt by the user's mistake (exit code 2); "" when it did
    not."""
    try:
        return " ".join(file(run, attempt).with_suffix(REFUSED).read_text().split())
    except OSError:
        return ""


def create_exclusively(path: epath.Path, text: str) -> bool:
    """Writes a new file; False when it is there already, whoever wrote it."""
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
