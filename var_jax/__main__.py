"""`python -m var_jax COMMAND`, the same as `var-jax COMMAND`."""

import sys

from var_jax.cli.main import command_line

if __name__ == "__main__":
    sys.exit(command_line())
