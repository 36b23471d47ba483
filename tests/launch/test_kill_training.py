"""launch/kill_training.py, with one signal of each kind."""

import pytest

from helpers.scripts import load_script


@pytest.mark.parametrize(
    ("sigkills", "sigterms", "landed", "kind"),
    [
        # A SIGTERM leaves a checkpoint of its own; whether a SIGKILL comes after a new one depends
        # on the machine's speed.
        pytest.param(2, 1, 1, "next_scale", marks=pytest.mark.slow),
        pytest.param(20, 10, 20, "next_scale", marks=pytest.mark.study),
        # Here every signal waits for a new checkpoint, so that both starts leave one.
        pytest.param(1, 1, 2, "adversarial", marks=pytest.mark.slow),
        *(
            pytest.param(1, 1, 2, objective, marks=pytest.mark.study)
            for objective in ("next_token", "masked", "diffusion")
        ),
    ],
)
def test_training_loses_nothing_when_it_is_killed(tmp_path, sigkills, sigterms, landed, kind):
    """The killed run logs every loss of the uninterrupted one to the last bit: the script returns
    -1 where a loss, an exit code or a SIGTERM's checkpoint is another, and else the number of
    starts that were killed after a new checkpoint."""
    compare = load_script("kill_training").compare
    saved = kind != "next_scale"
    assert compare(tmp_path, sigkills, sigterms, 0, kind=kind, saved=saved) >= landed
