"""The `var-jax` command: one file per command, the options that several share, the exit codes."""
