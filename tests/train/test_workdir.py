"""Which starts may go on with a workdir's run: the newest one, of the same settings."""

import dataclasses

import pytest
from etils import epath

from helpers import small
from var_jax.config.tokenizer_training import AdversarialConfig, ProgressiveConfig
from var_jax.config.train import DataConfig
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.train import workdir
from var_jax.train.loop import train


@pytest.fixture
def start_file(tmp_path, monkeypatch) -> epath.Path:
    """The first start's file, in its process's environment."""
    path = epath.Path(tmp_path / "run" / "claims" / "0001.json")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    monkeypatch.setenv(workdir.START_TOKEN_ENV, str(path))
    return path


def test_workdir_lets_the_newest_start_go_on(start_file, monkeypatch):
    """An older start is refused with both files named; half-written heartbeats and starts by hand
    are not."""
    workdir.require_newest_start()
    start_file.with_name("0001.json.12-ab.tmp").write_text("")  # a heartbeat that is being written
    workdir.require_newest_start()
    start_file.with_name("0002.json").write_text("")
    with pytest.raises(UserError, match=r"0001\.json was given up for 0002\.json"):
        workdir.require_newest_start()
    monkeypatch.setenv(workdir.START_TOKEN_ENV, str(start_file.with_name("0002.json")))
    workdir.require_newest_start()
    monkeypatch.delenv(workdir.START_TOKEN_ENV)  # given by hand
    workdir.require_newest_start()


def test_workdir_ends_a_start_whose_run_was_removed(start_file):
    """A missing claim, and a missing folder of claims, end the start."""
    start_file.unlink()
    with pytest.raises(UserError, match=r"0001\.json is gone"):
        workdir.require_newest_start()
    start_file.parent.rmdir()
    with pytest.raises(UserError, match=r"0001\.json is gone"):
        workdir.require_newest_start()


def test_workdir_is_looked_at_again_right_before_it_is_claimed(start_file, tmp_path):
    """The later start may be ordered while this one compiles."""
    config = small.train_config("transformer", tmp_path)
    workdir.refuse_another_run(start_file.parent.parent, config)
    start_file.with_name("0002.json").write_text("")
    for ask in (
        lambda run: workdir.refuse_another_run(run, config),
        lambda run: workdir.claim(run, small.next_scale(config)),
    ):
        with pytest.raises(UserError, match="given up for"):
            ask(start_file.parent.parent)
    assert [path.name for path in start_file.parent.parent.iterdir()] == ["claims"]


def test_train_ends_at_once_and_writes_nothing(start_file, tmp_path, model_dir):
    """An older start ends before it looks for its data, and the workdir keeps only the claims."""
    start_file.with_name("0002.json").write_text("")
    config = small.train_config(
        "transformer", tmp_path / "no data is looked for", tokenizer_dir=str(model_dir)
    )
    with pytest.raises(UserError, match="given up for 0002.json") as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["claims"]


def test_data_spelled_otherwise_are_the_same_where_content_is_kept(tmp_path, monkeypatch):
    """With a fingerprint in data.json, images are compared by content, wherever they lie; without
    one, places are, and a trailing slash or a relative path is the same place."""

    def run(place: str):
        return small.train_config(
            "tokenizer", "", data=DataConfig("image_folder", source_dir=place)
        )

    directory = epath.Path(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    workdir.claim(directory, registry.with_frozen_shapes(run(str(tmp_path / "photos"))))
    for place in ("photos", "photos/", "./photos", f"{tmp_path}//photos/"):
        workdir.refuse_another_run(directory, run(place))
    with pytest.raises(UserError, match=r"data\.source_dir: .*copy here"):
        workdir.refuse_another_run(directory, run("copy"))
    (directory / "data.json").write_text('{"name": "image_folder"}')  # as from a token cache
    with pytest.raises(UserError, match=r"data\.source_dir"):
        workdir.refuse_another_run(directory, run("copy"))
    (directory / "data.json").write_text('{"fingerprint": "abc"}')
    workdir.refuse_another_run(directory, run("copy"))
    with pytest.raises(UserError, match=r"data\.resize") as error:
        other = dataclasses.replace(
            run("copy"), data=DataConfig("image_folder", source_dir="copy", resize="pad")
        )
        workdir.refuse_another_run(directory, other)
    assert "source_dir" not in str(error.value)


def test_workdir_of_a_longer_run_keeps_the_steps_at_which_parts_begin(tmp_path):
    """A share of a longer run is another step, and the error names both; the step itself may be
    given in its place."""
    directory = epath.Path(tmp_path)
    parts = {
        "adversarial": AdversarialConfig(weight=1.0, start=0.5, warmup=0.1, layers=1),
        "progressive": ProgressiveConfig("1,2", until=0.3),
    }
    started = small.train_config("tokenizer", tmp_path, steps=10, **parts)
    workdir.claim(directory, registry.with_frozen_shapes(started))
    longer = small.train_config("tokenizer", tmp_path, steps=20, **parts)
    with pytest.raises(
        UserError, match=r"adversarial\.start.*10.*5.*adversarial\.warmup.*progressive\.until"
    ):
        workdir.refuse_another_run(directory, longer)
    config = {
        "adversarial": dataclasses.replace(parts["adversarial"], start=5, warmup=1),
        "progressive": ProgressiveConfig("1,2", until=3),
    }
    workdir.refuse_another_run(directory, dataclasses.replace(longer, **config))
    without = small.train_config("tokenizer", tmp_path / "other", steps=10)
    workdir.claim(directory / "other", registry.with_frozen_shapes(without))
    workdir.refuse_another_run(directory / "other", dataclasses.replace(without, steps=20))


def test_workdir_of_a_longer_run_keeps_the_steps_of_progressive_training_and_blur(tmp_path):
    """A share of a longer run is another step for these parts too, and the step itself may be given
    in its place."""
    directory = epath.Path(tmp_path)
    blurred = AdversarialConfig(weight=1.0, start=2, warmup=1, blur_fade=0.4, layers=1)
    workdir.claim(
        directory / "t",
        registry.with_frozen_shapes(
            small.train_config("tokenizer", tmp_path, steps=10, adversarial=blurred)
        ),
    )
    longer = small.train_config("tokenizer", tmp_path, steps=20, adversarial=blurred)
    with pytest.raises(UserError, match=r"adversarial\.blur_fade: 8 here, 4 there"):
        workdir.refuse_another_run(directory / "t", longer)
    remaining = dataclasses.replace(blurred, blur_fade=4)
    workdir.refuse_another_run(directory / "t", dataclasses.replace(longer, adversarial=remaining))
    shares = dataclasses.replace(
        small.TRANSFORMER, progressive=0.5, progressive_from=1, progressive_warmup=0.1
    )
    workdir.claim(
        directory / "v",
        small.next_scale(small.train_config("transformer", tmp_path, steps=10, transformer=shares)),
    )
    longer = small.train_config("transformer", tmp_path, steps=20, transformer=shares)
    with pytest.raises(
        UserError, match=r"progressive: 10 here, 5 there.*progressive_warmup: 2 here, 1 there"
    ):
        workdir.refuse_another_run(directory / "v", longer)
    steps = dataclasses.replace(shares, progressive=5, progressive_warmup=1)
    workdir.refuse_another_run(directory / "v", dataclasses.replace(longer, transformer=steps))


def test_workdir_lets_a_resumed_run_change_its_microbatches(tmp_path):
    """Microbatches say how a batch is computed, as remat does: a run goes on where memory is
    scarcer."""
    config = small.train_config("transformer", tmp_path)
    workdir.claim(tmp_path / "run", small.next_scale(config))
    workdir.refuse_another_run(tmp_path / "run", dataclasses.replace(config, microbatches=2))
    with pytest.raises(UserError, match="batch_size: 16 here, 8 there"):
        workdir.refuse_another_run(
            tmp_path / "run", dataclasses.replace(config, batch_size=16, microbatches=2)
        )
