"""Commands that tests run in their own process."""

from var_jax.cli.main import main


def run(capsys, *argv) -> str:
    """Runs a command that must succeed; returns what it prints to stdout."""
    assert main([str(argument) for argument in argv]) == 0
    return capsys.readouterr().out
