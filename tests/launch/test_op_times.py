"""Time of XLA's operations from a trace."""

import pytest

from helpers.scripts import load_script


@pytest.fixture(scope="module")
def op_times():
    return load_script("op_times")


def event(name: str, start: float, duration: float) -> dict:
    return {"ph": "X", "pid": 1, "tid": 1, "name": name, "ts": start, "dur": duration}


def test_op_times_leave_out_operations_inside(op_times):
    """A loop of 10 microseconds with bodies of 3 and 4 has 3 of its own, whatever the order of the
    events; the runtime's own are left out, and an operation after the loop counts in full."""
    events = [
        event("fusion.2", 5, 4),
        event("while", 0, 10),
        event("fusion.1", 1, 3),
        event("dot.7", 10, 2),
        event("ThunkExecutor::Execute", 0, 12),
        {"ph": "M", "name": "process_name"},
    ]
    times = op_times.op_times(events)
    assert {name: round(1e6 * time.seconds, 3) for name, time in times.items()} == {
        "fusion.2": 4,
        "while": 3,
        "fusion.1": 3,
        "dot.7": 2,
    }
    kinds = op_times.by_kind(times)
    assert list(kinds)[0] == "fusion" and kinds["fusion"].count == 2
    assert kinds["fusion"].seconds == pytest.approx(7e-6)
