"""The keys of a config: dataclasses with meanings, defaults and checks; and shared recipes."""
