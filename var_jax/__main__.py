"""`python -m var_jax COMMAND`, the same as `var-jax COMMAND`."""

import sys

from var_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
