"""Work in a compiler, where Python handles no signals: its elapsed time, and an end by a signal."""

import signal
import subprocess
import sys
import time

import pytest

from var_jax.cli import long_work

WORK = """
import hashlib
from var_jax.cli import long_work
with long_work.reported("hashing"):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_reported_ends_at_a_signal(number):
    """A compiler works where Python handles no signal, as the hash does here, for minutes: the
    process must end at once, with one line."""
    process = subprocess.Popen([sys.executable, "-c", WORK], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "hashing\n"
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert process.stderr.read() == f"var-jax: ended by {number.name}\n"


def test_reported_says_how_long_it_takes(capsys):
    """The handlers are those of before at the end, and nothing is printed afterwards."""
    before = [signal.getsignal(number) for number in long_work.SIGNALS]
    with long_work.reported("working", interval=0.05):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "working" and lines[1] == "still at it after 0:00 min"
    assert [signal.getsignal(number) for number in long_work.SIGNALS] == before
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
