import concurrent.futures
import json
import os
import subprocess
import sys
import time

import pytest
from etils import epath

from var_jax.sweep import claims


def test_create_gives_the_claim_to_one_of_many_threads(tmp_path):
    """Exactly one of 64 calls in 16 threads gets the claim of an attempt, and the claim on disk is
    the one that it got."""
    run = epath.Path(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        won = [
            c
            for c in pool.map(lambda _: claims.create(run, 1, "local"), range(64))
            if c is not None
        ]
    assert len(won) == 1 and claims.read(run) == won


@pytest.mark.long
def test_create_gives_the_claim_to_one_of_two_processes(tmp_path):
    """Two processes never submit one attempt twice: they claim it at the same moment, after their
    imports, and one of them is refused."""
    code = (
        "import sys, time; from etils import epath; from var_jax.sweep import claims; "
        "time.sleep(max(0, float(sys.argv[2]) - time.time())); "
        "print(claims.create(epath.Path(sys.argv[1]), 1, 'local') is not None)"
    )
    started = str(time.time() + 2.5)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), started], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == [
        "False",
        "True",
    ]


def test_read_returns_all_attempts(tmp_path):
    """The claims of all attempts are read in their order and with later changes, and an attempt
    that has a claim cannot be claimed again."""
    run = epath.Path(tmp_path)
    first = claims.create(run, 1, "local")
    first = claims.replace(run, first, job="host:1:2.0")
    second = claims.create(run, 2, "slurm", after="preempted", reached=30)
    assert claims.read(run) == [first, second]
    assert (first.host, first.pid, second.after, second.reached) == (
        os.uname().nodename,
        os.getpid(),
        "preempted",
        30,
    )
    assert claims.create(run, 2, "local") is None


def test_read_takes_a_truncated_claim_as_one_without_a_job(tmp_path):
    """A claim whose file is empty, as after a crash during the write, still counts as a recent
    attempt without a job, and nobody can claim that attempt again."""
    run = epath.Path(tmp_path)
    claims.create(run, 1, "local")
    (tmp_path / "claims" / "0001.json").write_text("")
    (result,) = claims.read(run)
    assert result.attempt == 1 and result.job == "" and abs(result.heartbeat - time.time()) < 60
    assert claims.create(run, 1, "local") is None


def test_process_alive_distinguishes_processes_of_one_pid():
    """A process is identified by its start time too: with another start time it is gone, on another
    host it cannot be known, and a zombie counts as ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host, pid, born = claims.process_id(process.pid)
    assert claims.process_alive(host, pid, born)
    assert claims.process_alive(host, pid, born - 60) is False
    assert claims.process_alive("elsewhere", pid, born) is None
    process.stdin.close()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert claims.process_alive(host, pid, born) is False
    process.wait()
    assert claims.process_alive(host, pid, born) is False


def test_create_exclusively_in_a_bucket():
    """A bucket refuses the second creation of a file; fsspec's file system in memory, which has the
    same call and error, stands for it."""
    pytest.importorskip("fsspec")
    path = "memory://sweep-test/claims/0001.json"
    assert claims.create_exclusively(path, json.dumps({"a": 1}))
    assert not claims.create_exclusively(path, json.dumps({"a": 2}))
    import fsspec

    assert json.loads(fsspec.filesystem("memory").cat("/sweep-test/claims/0001.json")) == {"a": 1}
