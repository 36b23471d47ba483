import kills
import pytest


@pytest.mark.parametrize(("sigkills", "sigterms"), [
    pytest.param(2, 1, marks=pytest.mark.slow), pytest.param(20, 10, marks=pytest.mark.study)])
def test_a_killed_run_loses_nothing(tmp_path, sigkills, sigterms):
    assert kills.report(tmp_path, sigkills, sigterms, seed=0)
