import pytest

import kills


@pytest.mark.parametrize(
    ("sigkills", "sigterms", "landed", "adversarial"),
    [
        # A SIGTERM leaves a checkpoint of its own; whether a SIGKILL comes after a new one is the
        # machine's speed.
        pytest.param(2, 1, 1, False, marks=pytest.mark.slow),
        pytest.param(20, 10, 20, False, marks=pytest.mark.study),
        # Unless the new one is waited for: then both lives leave one and are gone on with.
        pytest.param(1, 1, 2, True, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_loses_nothing(tmp_path, sigkills, sigterms, landed, adversarial):
    assert kills.report(tmp_path, sigkills, sigterms, 0, adversarial, saved=adversarial) >= landed
