"""The objective of an adapter: at its start the frozen model, then the same on every mesh."""

import dataclasses
import json
import shlex

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from helpers import adapters, diffusion, masked, next_token, small
from helpers.mesh_steps import assert_same_step, one_step
from var_jax.adapters import adapter_file
from var_jax.config import idle_keys
from var_jax.config.adapter_config import AdapterConfig
from var_jax.config.strict import plain
from var_jax.config.train import LossConfig, TrainConfig
from var_jax.errors import UserError
from var_jax.objectives import frozen_base, registry
from var_jax.objectives.adapter_training import AdapterTraining
from var_jax.sampling import labels
from var_jax.studies import quickstart
from var_jax.sweep import plan

pytestmark = pytest.mark.usefixtures("compiled_fast")

CLASSES = "mug,cup"
MODELS = {
    "next_scale": small,
    "next_token": next_token,
    "masked": masked,
    "diffusion": diffusion,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Directories of tiny models, by objective."""
    return adapters.write_bases(tmp_path_factory.mktemp("bases"), MODELS)


def run(bases, name: str, **settings) -> TrainConfig:
    """Returns the run of an adapter of a tiny model; its own transformer section is not used."""
    base = small.train_config("transformer", "")
    return adapters.training(base, bases / name, **{"classes": CLASSES, **settings})


def batch_of(config: TrainConfig) -> dict[str, np.ndarray]:
    """Returns random latents or tokens, of old classes and new ones."""
    random, transformer = np.random.RandomState(0), config.transformer
    batch = {"label": np.array([0, 10, 11, 3, 11, 10, 9, 2], np.int32)}
    if transformer.objective == "diffusion":
        shape = (8, *transformer.latent_shape)
        return {**batch, "latents": random.standard_normal(shape).astype(np.float32)}
    tokens = random.randint(0, 16, (8, transformer.scales.total))
    return {**batch, "tokens": tokens.astype(np.int32)}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_adapter_starts_as_the_frozen_model(bases, name, tmp_path):
    """At its start every weight is the base's to the last bit, and a new row is the one it starts
    from; the gradient of A is zero, and those of B and of the new rows are not, whatever the
    objective."""
    objective = adapters.objective(run(bases, name, start="mean,3"), tmp_path)
    assert objective.config.transformer.objective == name
    assert objective.config.transformer.num_classes == 12
    params, frozen = adapters.fresh(objective), objective.frozen
    merged = flatten_dict(objective.merged(params, frozen), sep="/")
    base = flatten_dict(frozen.base, sep="/")
    table = base.pop("class_embed")
    extended = np.asarray(merged.pop("class_embed"))
    for path, leaf in base.items():
        np.testing.assert_array_equal(merged[path], leaf, err_msg=path)
    np.testing.assert_array_equal(extended[[*range(10), 12]], table)
    np.testing.assert_allclose(extended[10], table[:10].mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(extended[11], table[3])

    def loss(params, batch):
        return objective.loss(params, frozen, batch, jax.random.key(0))[0]

    gradients = flatten_dict(jax.jit(jax.grad(loss))(params, batch_of(objective.config)), sep="/")
    assert len(gradients) == 9
    for path, gradient in gradients.items():
        assert np.any(gradient) == (not path.endswith("/a")), path


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_adapter_step_is_the_same_on_every_mesh(bases, name, tmp_path):
    """Metrics and updated factors of 8x1 and 4x2 devices are those of one device, to rounding,
    whatever the objective."""
    objective = adapters.objective(run(bases, name), tmp_path)
    random = np.random.RandomState(0)
    start = jax.tree.map(
        lambda x: (0.1 * random.standard_normal(x.shape)).astype(np.float32),
        adapters.fresh(objective),
    )
    batch = batch_of(objective.config)
    first, *others = (
        one_step(data, model, batch, start, objective.config, objective)
        for data, model in ((1, 1), (8, 1), (4, 2))
    )
    for other in others:
        assert_same_step(other, first, start)


def test_model_labels_are_by_name(bases, tmp_path):
    """Classes of the data are the base's by their names, which are its ids without names, or new;
    what is neither, and a new class without images, are named."""
    objective = adapters.objective(run(bases, "masked"), tmp_path)
    np.testing.assert_array_equal(objective.model_labels(["cup", "7", "mug"]), [11, 7, 10])
    with pytest.raises(UserError, match="class 'jar'.*adapter.classes=jar"):
        objective.model_labels(["cup", "mug", "jar"])
    with pytest.raises(UserError, match="class '10'"):
        objective.model_labels(["cup", "mug", "10"])
    with pytest.raises(UserError, match="'mug', of which the data have no images"):
        objective.model_labels(["cup", "mugs"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "adapter.rank is 0"),
        ({"alpha": 0.0}, "adapter.alpha is 0.0"),
        ({"targets": "qkv,fc3"}, "adapter.targets has 'fc3'; did you mean 'fc"),
        ({"targets": "qkv,qkv"}, "adapter.targets is 'qkv,qkv'"),
        ({"targets": ""}, "adapter.targets is ''"),
        ({"classes": "mug,mug"}, "adapter.classes is 'mug,mug'"),
        ({"classes": "mug,"}, "adapter.classes is 'mug,'"),
        ({"start": "1,2"}, "adapter.start is '1,2'"),
    ],
    ids=str,
)
def test_adapter_config_refuses_values_by_name(settings, message):
    """The line has the key and its value."""
    with pytest.raises(UserError, match=message):
        AdapterConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": ""}, "adapter.base is ''.*--config.adapter.base=DIR"),
        ({"base": "no/such"}, "no model directory no/such"),
        ({"classes": "mug,3"}, "adapter.classes has '3', which is a class of the model"),
        ({"classes": "mug", "start": "12"}, "adapter.start is 12; it must be 'mean'.* 0 to 9"),
        ({"classes": "mug", "start": "cat"}, "adapter.start: 'cat' is not a class"),
        ({"classes": "", "kind": "class_rows"}, "adapter.classes is ''.*'class_rows'"),
    ],
    ids=str,
)
def test_adapter_run_refuses_what_its_base_does_not_have(bases, settings, message):
    """A base that is missing, and classes that do not fit it, are named before anything is read."""
    config = run(bases, "masked")
    config = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, **settings))
    with pytest.raises(UserError, match=message):
        registry.with_frozen_sizes(config)


def test_with_frozen_sizes_refuses_flags_that_the_base_replaces(bases):
    """A flag for a size of the base must agree with it; keys of the computation are the run's."""
    config = run(bases, "masked")
    transformer = dataclasses.replace(config.transformer, depth=3, remat="full")
    config = dataclasses.replace(config, transformer=transformer)
    resolved = registry.with_frozen_sizes(config, ["transformer.remat"])
    assert (resolved.transformer.depth, resolved.transformer.remat) == (1, "full")
    with pytest.raises(UserError, match="transformer.depth is 3; the transformer in .* has 1"):
        registry.with_frozen_sizes(config, ["transformer.depth"])


@pytest.mark.parametrize(
    ("settings", "key", "switch"),
    [
        ({"kind": "class_rows", "alpha": 2.0}, "adapter.alpha", "adapter.kind"),
        ({"classes": "", "start": "3"}, "adapter.start", "adapter.classes"),
        ({}, "transformer.gradient_dtype", "transformer.dtype"),
    ],
    ids=str,
)
def test_refuse_flags_names_keys_of_adapters_without_effect(bases, settings, key, switch):
    """Keys of LoRA do nothing for rows alone, a start does nothing without new classes, and a dtype
    of gradients nothing in float32."""
    config = run(bases, "masked", **settings)
    transformer = dataclasses.replace(config.transformer, gradient_dtype="bfloat16")
    config = dataclasses.replace(config, transformer=transformer)
    with pytest.raises(UserError, match=f"{key}=.* has no effect while {switch} is"):
        idle_keys.refuse_flags(config, [key])


@pytest.mark.parametrize(
    ("name", "section", "values"),
    [
        ("diffusion", "loss", {"label_smoothing": 0.1}),
        ("masked", "transformer", {"progressive": 0.5, "progressive_from": 1}),
    ],
    ids=str,
)
def test_with_frozen_sizes_refuses_keys_without_effect_in_the_base(bases, name, section, values):
    """Keys of other objectives are named once the base, and with it the objective, is known; those
    of the base itself are not."""
    config = run(bases, name)
    changed = dataclasses.replace(getattr(config, section), **values)
    key, value = next(iter(values.items()))
    with pytest.raises(UserError, match=rf"{section}\.{key}={value}.* no effect.*{name}"):
        registry.with_frozen_sizes(dataclasses.replace(config, **{section: changed}))


def test_begun_run_keeps_its_keys_without_effect(bases, tmp_path):
    """An adapter's run that began with a key which its base's objective ignores goes on by the same
    command, and another value of the key is refused."""
    config = run(bases, "diffusion", classes=CLASSES)
    before = dataclasses.replace(config, loss=LossConfig(label_smoothing=0.1))
    (tmp_path / "config.json").write_text(json.dumps(plain(before)))
    assert adapters.objective(before, tmp_path).config.loss.label_smoothing == 0.1
    other = dataclasses.replace(config, loss=LossConfig(label_smoothing=0.2))
    for changed, workdir in ((other, tmp_path), (before, tmp_path / "new")):
        with pytest.raises(UserError, match="label_smoothing=.* no effect"):
            adapters.objective(changed, workdir)


def test_branch_of_another_bases_run_is_refused(bases, tmp_path):
    """A branch takes an adapter's whole state, which means nothing for another model: both
    fingerprints are in the line, as for a workdir of another base."""
    trunk = adapters.random_adapter(tmp_path / "trunk", masked.pipeline(), 0, classes="mug")
    started = adapter_file.load_header(trunk).fingerprint
    config = dataclasses.replace(run(bases, "masked"), branch_from=str(trunk), branch_step=1)
    same = adapters.objective(config, tmp_path)
    assert same.frozen.fingerprint == started
    other = dataclasses.replace(run(bases, "diffusion"), branch_from=str(trunk), branch_step=1)
    with pytest.raises(UserError, match=f"{trunk} was started with, {started}"):
        adapters.objective(other, tmp_path)


def test_class_names_are_read_and_written_as_labels_are(bases, tmp_path):
    """Names with commas, quotes and digits alone are read from the config, and the command that
    samples them has them as `--labels` reads them: 12 without quotes would be an id."""
    config = run(bases, "masked", classes='"ring, thin","a ""b""",mug,12')
    names = ("ring, thin", 'a "b"', "mug", "12")
    assert config.adapter.class_names == names
    command = shlex.split(AdapterTraining.next_command(config, str(tmp_path), "", ()))
    text = command[command.index("--labels") + 1]
    assert labels.parse(text, [*map(str, range(10)), *names]) == [10, 11, 12, 13]


def test_base_hands_on_no_schedule_of_its_scales(bases):
    """A base that was trained on a growing number of scales is adapted on all of them."""
    config = run(bases, "masked")
    base = frozen_base.read_base(config)
    schedule = {"progressive": 0.5, "progressive_from": 1}
    grown = base._replace(transformer=dataclasses.replace(base.transformer, **schedule))
    assert frozen_base.with_base(config, grown) == frozen_base.with_base(config, base)


def test_sweeps_and_the_quickstart_refuse_an_adapters_run(bases, tmp_path):
    """Both are of models, and an adapter's run leaves none; nothing is written."""
    config = run(bases, "masked")
    with pytest.raises(UserError, match="its config has stage 'adapter'"):
        plan.expand([{}], lambda flags: config, str(tmp_path))
    tokenizer = small.train_config("tokenizer", "")
    with pytest.raises(UserError, match="stage of the transformer's config is adapter"):
        quickstart.run(tokenizer, config, str(tmp_path), samples=1)
    assert not list(tmp_path.iterdir())
