"""The versions, sources and options that a compiled step depends on."""

import jax
import pytest

from var_jax.train import toolchain


def test_environment_names_every_flag_that_changes_programs(monkeypatch):
    """Flags are told apart by name, with or without a value; those that change no program are left
    out, and the TPU's own variable counts for TPUs alone."""
    flags = "--xla_a=1 --xla_b --xla_dump_to=d --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_c=false")

    def flags_of(platform):
        environment = toolchain.environment(platform)
        return {name: value for name, value in environment.items() if "xla" in name}

    assert flags_of("cpu") == {"XLA_FLAGS xla_a": "1", "XLA_FLAGS xla_b": "true"}
    assert flags_of("tpu") == {**flags_of("cpu"), "LIBTPU_INIT_ARGS xla_c": "false"}


@pytest.mark.parametrize("name", toolchain.JAX_OPTIONS)
def test_environment_has_options_of_jax(name):
    """Every option is one that the installed JAX has; a name that it lacks would never differ."""
    assert name in jax.config.values
    assert toolchain.environment("cpu")[name.upper()] == str(jax.config.values[name])


def test_environment_follows_the_precision_of_products():
    """Products of another precision are another program."""
    before = toolchain.environment("cpu")
    name = "jax_default_matmul_precision"
    previous = jax.config.values[name]
    try:
        jax.config.update(name, "float32")
        changed = toolchain.environment("cpu")
    finally:
        jax.config.update(name, previous)
    assert {key for key in changed if changed[key] != before[key]} == {name.upper()}


def test_versions_have_the_compiler_of_a_tpu():
    """The TPU's compiler is a library of its own; a CPU's is part of jaxlib."""
    assert toolchain.versions("cpu").keys() == {"jax", "jaxlib", "flax", "optax"}
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    assert toolchain.versions("tpu").keys() - toolchain.versions("cpu").keys() == {"libtpu"}


def test_sources_follow_the_folders():
    """A fingerprint of more folders is another one."""
    assert toolchain.sources() != toolchain.sources((*toolchain.CODE, "perf"))
