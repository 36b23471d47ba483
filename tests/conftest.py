"""Sets up the process that runs the tests: eight host devices, and programs that compile fast."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

FLAGS = (
    # The tests' programs are small, so that XLA spends more time on optimizing them than they run:
    # without LLVM's optimization and XLA's newer fusion emitters, they compile much faster.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    # Eight devices share few cores: one that waits for the others for 40 s would end the process.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
# Whether this process's parent has found that its version of XLA knows these flags: it aborts on
# one that it does not know.
ARE_KNOWN_ENV = "VAR_JAX_TESTS_FLAGS_ARE_KNOWN"


def pytest_configure(config: pytest.Config):
    """Sets JAX's environment before any test module imports it.

    Slow tests run the programs that a user runs, with all optimization: they run longer than they
    compile.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        flags += " --xla_force_host_platform_device_count=8"
    is_slow = config.option.markexpr == "slow"
    if not is_slow and FLAGS[0] not in flags and _are_known(FLAGS):
        flags = " ".join((flags, *FLAGS))
    os.environ["XLA_FLAGS"] = flags.strip()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _share_programs(config)


def _share_programs(config: pytest.Config):
    """Keeps the programs of all processes of this run in one place until it ends: many tests
    compile the same small model, and so do the commands that they start. The processes of
    pytest-xdist inherit the place from the one that starts them."""
    directory = tempfile.mkdtemp(prefix="var-jax-tests-")
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def _are_known(flags: tuple[str, ...]) -> bool:
    """Returns whether the installed XLA starts with these flags."""
    if ARE_KNOWN_ENV not in os.environ:
        start = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env={**os.environ, "XLA_FLAGS": " ".join(flags)},
            capture_output=True,
            check=False,
        )
        os.environ[ARE_KNOWN_ENV] = str(start.returncode)
    return os.environ[ARE_KNOWN_ENV] == "0"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escapes bytes of file names that are not UTF-8 in what a test has printed: the processes of
    pytest cannot send them to each other."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


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


@pytest.fixture(scope="module")
def compiled_fast():
    """Compiles a module's programs quickly at the cost of their speed, with the collectives that
    they have otherwise."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """The directory of the digits, which are prepared once for all tests."""
    from var_jax.config.train import DataConfig
    from var_jax.data import sources

    directory = tmp_path_factory.mktemp("digits")
    sources.open_split(DataConfig("digits", data_dir=str(directory)), "train")
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """The directory of the small model."""
    from helpers import small

    directory = tmp_path_factory.mktemp("model") / "small"
    small.pipeline().save(directory)
    return directory
