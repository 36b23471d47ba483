"""How processes join a run: arguments, the address of process 0, and signs of a lost process."""

import socket

import pytest

from helpers import processes, small
from var_jax.cli.main import main
from var_jax.devices import lost_process, multihost, process_group
from var_jax.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (None, 2, 0),
            "--coordinator missing: --coordinator, --num-processes and --process-id go together",
        ),
        (("here:1234", None, None), "--num-processes and --process-id missing"),
        (
            ("here:1234", 2, 2),
            "--process-id is 2; it must be from 0 to 1, as there are 2 processes",
        ),
        (("here:1234", 2, -1), "--process-id is -1"),
        (("here:1234", 0, 0), "--num-processes is 0; it must be at least 1"),
        (("here", 2, 0), "--coordinator is 'here'; it must be HOST:PORT"),
        (("here:port", 2, 0), "must be HOST:PORT"),
        (("here:123456", 2, 0), "must be HOST:PORT"),
    ],
)
def test_initialize_refuses_arguments_that_make_no_run(arguments, message):
    """Each missing or wrong argument is named in one line."""
    with pytest.raises(UserError, match=message) as error:
        process_group.initialize(*arguments)
    assert "\n" not in str(error.value)


def test_initialize_names_a_coordinator_that_does_not_answer():
    """A closed port and an unknown host both end in one line after the time to wait."""
    with pytest.raises(
        UserError, match=r"no answer from process 0 in 1 s .*; start it, or correct the address"
    ):
        process_group.initialize(f"127.0.0.1:{processes.free_port()}", 2, 1, start_seconds=1)
    with pytest.raises(UserError, match="no answer from process 0 in 1 s"):
        process_group.initialize("no.such.host.invalid:8476", 2, 1, start_seconds=1)


def test_initialize_names_a_port_that_is_taken():
    """Another listener on process 0's port ends in one line, where JAX would crash."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            UserError, match=f"cannot listen on port {port}: .*; give another port in every process"
        ):
            process_group.initialize(f"127.0.0.1:{port}", 2, 0)


def test_initialize_does_nothing_for_a_single_process():
    """A count of one process joins nothing, whatever the address."""
    process_group.initialize("127.0.0.1:1", 1, 0)
    assert not multihost.is_multiprocess()


def test_train_prints_one_line_for_a_missing_process_id(tmp_path, capsys):
    """The command ends with exit code 2 and one line, before it makes a workdir."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    code = main(
        [
            "train",
            "--config",
            str(tmp_path / "config.py:tokenizer"),
            "--workdir",
            str(tmp_path / "run"),
            "--coordinator",
            "here:1234",
            "--num-processes",
            "2",
        ]
    )
    assert code == 2
    assert capsys.readouterr().err.splitlines() == [
        "var-jax: --process-id missing: --coordinator, --num-processes and --process-id go together"
    ]
    assert not (tmp_path / "run").exists()


def test_is_lost_process_reads_the_causes_of_an_error():
    """Messages of Gloo and JAX count below an error of this project; other errors do not."""
    for text in (
        "UNKNOWN: Gloo all-reduce failed: Connection reset by peer",
        "UNAVAILABLE: Task 1 heartbeat timeout",
        "Barrier timed out. Id: save:3",
    ):
        try:
            try:
                raise RuntimeError(text)
            except RuntimeError as error:
                raise UserError("cannot write the checkpoint") from error
        except UserError as error:
            assert lost_process.is_lost_process(error)
    assert not lost_process.is_lost_process(UserError("batch_size is 12"))
