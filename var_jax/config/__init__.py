"""Every key of a config: frozen dataclasses with meanings, defaults and checks, and recipes that
configs share."""
