"""Eight host devices for every test, whatever the caller's environment says, set before JAX
starts."""

import gc
import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import pytest  # noqa: E402

# What runs in a shell's background ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Every compiled program holds memory maps, of which Linux gives a process 65,530
    (vm.max_map_count): the whole suite's would end it with a segmentation fault."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """Where the digits lie prepared, so that they are only once."""
    from var_jax.config.train import DataConfig
    from var_jax.data import sources

    directory = tmp_path_factory.mktemp("digits")
    sources.open_split(DataConfig("digits", data_dir=str(directory)), "train")
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The small model, saved."""
    from helpers import small

    directory = tmp_path_factory.mktemp("model") / "small"
    small.pipeline().save(directory)
    return directory
