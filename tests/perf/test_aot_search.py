"""The search for settings: what is tried, in which order, what is left out, and what is kept."""

import dataclasses
import json

import pytest
from etils import epath

from helpers import small
from var_jax.cli.main import main
from var_jax.config.train import MeshConfig
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.perf import aot_search, tpu_slices
from var_jax.train import memory_estimate

pytest.importorskip(
    "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
)

CONFIG = small.train_config("transformer", "", batch_size=16)
DEPTH = 2


@pytest.fixture(autouse=True)
def untraced(request, monkeypatch):
    """No derivative is traced for the memory, which takes seconds per search: all settings fit."""
    residuals = {"none": 3e4, "dots": 1e4 + 1, "full": 1.0}
    memory = memory_estimate.TrainingMemory(
        1.0, 1.0, 1.0, 0.0, residuals, dict.fromkeys(residuals, 0.0), 0.0, 1, 1, DEPTH
    )
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(memory_estimate, "of_training", lambda *_: memory)


@pytest.fixture(scope="module")
def tpu_slice():
    return tpu_slices.named("v5e:2x2")


def of(config, tpu_slice):
    return aot_search.candidates(registry.with_frozen_shapes(config), tpu_slice)


@pytest.fixture
def candidates(tpu_slice):
    return of(CONFIG, tpu_slice)


@pytest.fixture
def compiled(monkeypatch):
    """Candidates that were compiled; each takes 1.5 times its least time, and fits if it
    recomputes something."""
    done = []

    def measure(objective, candidate, tpu_slice):
        done.append(candidate)
        fits = candidate.remat != "none"
        seconds = 1.5 * candidate.seconds
        return {
            "fits": fits,
            "peak_bytes": 1.0,
            "step_seconds_exposed": seconds,
            "mfu_bound": 0.5,
            "mfu_bound_exposed": 0.4,
            "mesh": {"data": candidate.mesh["data"], "model": candidate.mesh["model"]},
            "remat": candidate.remat,
            "overrides": candidate.overrides("transformer"),
        }

    monkeypatch.setattr(aot_search, "_compiled", measure)
    return done


def search(tpu_slice, **options):
    printed = []
    options = {"most": 100, **options}
    return aot_search.search(CONFIG, tpu_slice, printed.append, **options), printed


def test_candidates_are_ordered_and_differ_in_every_setting(candidates):
    """All settings that a search may change are among them, each once, and after those of the
    config the least time first."""
    times = [one.seconds for one in candidates[1:]]
    assert times == sorted(times)
    overrides = [json.dumps(one.overrides("transformer")) for one in candidates]
    assert len(set(overrides)) == len(overrides)
    assert {one.mesh["policy"] for one in candidates} == {"fsdp", "hsdp", "zero1"}
    assert {one.remat for one in candidates} == {
        *("none", "dots", "dots:1", "offload", "offload:1", "full"),
    }
    assert {one.microbatches for one in candidates} == {1, 2, 4}  # divisors of 4 images and up
    assert {one.mesh["model"] for one in candidates} == {1, 2}


def test_candidates_cost_more_where_more_is_moved_or_computed(candidates):
    """Gathering in both passes, two microbatches and full rematerialization each need more time
    than what they are compared with."""
    by = {
        (c.mesh["policy"], c.mesh["model"], c.remat, c.microbatches): c.seconds for c in candidates
    }
    base = by["zero1", 1, "dots", 1]
    assert by["hsdp", 1, "dots", 1] > base
    assert by["zero1", 1, "dots", 2] > base
    assert by["zero1", 1, "full", 1] >= base


def test_candidates_bring_their_bytes_to_the_host_and_back(candidates, tpu_slice):
    """By hand, 10 kB of each of 16 images, in all blocks or half of them, over 15 GB/s each way,
    which takes longest; without them the FLOPs do, or half of the network's time, and the full
    recomputation of half of the blocks adds an eighth to the FLOPs."""
    by = {
        (c.mesh["policy"], c.mesh["model"], c.remat, c.microbatches): c.seconds for c in candidates
    }
    host = 2 * 16 * 1e4 / 15e9
    flops = registry.with_frozen_shapes(CONFIG).flops_per_image() * 16
    compute = flops / (4 * tpu_slice.chip.peak_flops)
    network = by["zero1", 1, "offload", 1] - host  # the exposed half of it
    for remat, longest in (
        ("offload:1", host / 2),
        ("dots:1", max(1.125 * compute, network)),
        ("dots", max(compute, network)),
    ):
        assert by["zero1", 1, remat, 1] == pytest.approx(longest + network), remat


def test_candidates_divide_the_batch_as_a_run_does(tpu_slice):
    """A batch of 12 in two parts is one that no four devices divide: a run would be refused."""
    mesh = MeshConfig(data=2, model=2)
    config = dataclasses.replace(CONFIG, batch_size=12, microbatches=2, mesh=mesh)
    assert {one.mesh["data"] for one in of(config, tpu_slice)} == {2}


def test_search_stops_where_no_candidate_can_be_better(tpu_slice, candidates, compiled):
    """A candidate whose least time exceeds the best bound of a program is not compiled; the best
    that fits is reported, with its settings."""
    figures, printed = search(tpu_slice)
    best = min(1.5 * c.seconds for c in compiled if c.remat != "none")
    assert 2 < len(compiled) < len(candidates)
    assert candidates[len(compiled)].seconds >= best > candidates[len(compiled) - 1].seconds
    assert figures["step_seconds_exposed"] == best and figures["fits"]
    assert figures["overrides"]["transformer.remat"] != "none"
    assert len(figures["searched"]) == len(compiled)
    assert printed[-1] == "no other candidate can have a shorter bound"
    assert "s per program" in printed[1] and "min left" in printed[1]
    lines = aot_search.lines(figures)
    assert f"--config.mesh.policy={figures['overrides']['mesh.policy']}" in lines[-1]


def test_search_compiles_at_most_so_many_programs(tpu_slice, compiled):
    """A limit ends it, and says so."""
    _, printed = search(tpu_slice, most=2)
    assert len(compiled) == 2 and "--compilations" in printed[-1]


def test_candidates_begin_with_those_of_the_config(tpu_slice):
    """Its own policy, mesh, options of the compiler and rematerialization come first, whatever
    their least time; the same settings are not tried again, be they given or left open."""
    mesh = MeshConfig(policy="hsdp", replicas=2, compiler_options="xla_a=1")
    config = small.train_config("transformer", "", batch_size=16, mesh=mesh)
    config = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, remat="full")
    )
    first, *others = of(config, tpu_slice)
    assert first.mesh == {key: getattr(mesh, key) for key in aot_search.MESH_KEYS}
    assert first.remat == "full" and first.seconds > others[0].seconds > 0

    names = {one.name for one in of(CONFIG, tpu_slice)}
    explicit = dataclasses.replace(CONFIG, mesh=MeshConfig(data=4, policy="fsdp", replicas=1))
    assert len(names) == len(of(explicit, tpu_slice)) == len(of(CONFIG, tpu_slice))
    assert of(CONFIG, tpu_slice)[0].mesh["data"] == -1
    assert of(explicit, tpu_slice)[0].name not in names


def test_candidates_have_what_auto_stands_for(tpu_slice):
    """With "auto" the first candidate is the choice of the rule, which a run takes."""
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(policy="auto"))
    config = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, remat="auto")
    )
    first = of(config, tpu_slice)[0]
    assert (first.mesh["policy"], first.remat) == ("zero1", "dots")


def test_candidates_of_convolutional_networks_have_an_option_of_their_own(tpu_slice, candidates):
    """A tokenizer is also tried without pieces of images, and a transformer is not."""
    options = {
        one.mesh["compiler_options"]
        for one in of(small.train_config("tokenizer", "", batch_size=16), tpu_slice)
    }
    assert options == {"", aot_search.WITHOUT_PIECES}
    assert {one.mesh["compiler_options"] for one in candidates} == {""}


def test_candidates_leave_out_a_mesh_that_a_run_refuses(tpu_slice):
    """A mesh of the config that does not divide the batch is none of them; others are."""
    config = dataclasses.replace(CONFIG, batch_size=6, mesh=MeshConfig(data=4))
    assert {one.mesh["data"] for one in of(config, tpu_slice)} == {2}


def test_search_goes_on_from_what_it_has_tried(tpu_slice, compiled, tmp_path):
    """The figures of a search that was stopped are read; those of another config are not."""
    tried = epath.Path(tmp_path / "a.tried")
    first, _ = search(tpu_slice, most=2, tried=tried)
    again, _ = search(tpu_slice, most=2, tried=tried)
    assert len(compiled) == 2 and again == first
    search(tpu_slice, most=3, tried=tried)
    assert len(compiled) == 3
    other = small.train_config("transformer", "", batch_size=32)
    aot_search.search(other, tpu_slice, print, most=2, tried=tried)
    assert len(compiled) == 5


def test_search_of_a_slice_that_nothing_fits_reports_what_was_compiled(tpu_slice, compiled):
    """Here the first candidate recomputes nothing. As without a search, the figures say that it
    does not fit, and the command ends with exit code 1."""
    figures, _ = search(tpu_slice, most=1)
    assert not figures["fits"] and [one["fits"] for one in figures["searched"]] == [False]


def test_search_of_a_batch_that_no_mesh_divides_says_so(tpu_slice, compiled):
    """The reason is the batch, and not memory."""
    config = small.train_config("transformer", "", batch_size=7)
    with pytest.raises(UserError, match="batch_size is 7"):
        aot_search.search(config, tpu_slice, print, most=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search", "--step", "sample"], "--search is given; it must be used with --step train"),
        (["--compilations", "3"], "--compilations is 3; it must be given with --search"),
        (["--search", "--compilations", "0"], "--compilations is 0; it must be at least 1"),
    ],
)
def test_aot_refuses_options_that_do_not_go_together(tmp_path, capsys, options, message):
    """Each is refused in one line before anything is compiled."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    command = ["aot", "--config", str(tmp_path / "config.py"), "--topology", "v5e:2x2", *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_aot_search_writes_overrides_that_give_the_same_program(tmp_path, capsys):
    """The settings that the search proposes, given to the command, compile to the same bounds."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    command = ["aot", "--config", str(tmp_path / "config.py"), "--topology", "v5e:2x2"]
    command += ["--config.batch_size=16", "--json"]
    assert main([*command, str(tmp_path / "a.json"), "--search", "--compilations", "2"]) == 0
    assert "the best 2 of 2 compiled candidates" in capsys.readouterr().out
    best = json.loads((tmp_path / "a.json").read_text())
    flags = [f"--config.{key}={value}" for key, value in best["overrides"].items()]
    assert main([*command, str(tmp_path / "b.json"), *flags]) == 0
    compiled_again = json.loads((tmp_path / "b.json").read_text())
    for key in ("mesh", "policy", "remat", "peak_bytes", "step_seconds_exposed", "collectives"):
        assert compiled_again[key] == best[key], key
