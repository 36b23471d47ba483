"""Batches of images: order, resuming, hosts, workers and evaluation passes."""

import dataclasses
import itertools

import numpy as np
import pytest

from helpers.batches import same, take
from var_jax.config.train import DataConfig
from var_jax.data import loader, sources
from var_jax.errors import UserError

SHAPE = (16, 12, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """90 digits: small enough for several epochs, cropped at random."""
    config = DataConfig(
        data_dir=str(tmp_path_factory.mktemp("tfds")),
        train_split="train[:90]",
        eval_split="test[:50]",
    )
    sources.open_split(config, "train")
    return config


def test_batches_are_bytes_of_the_models_shape(data):
    """Whatever the resizing and number of channels, images are uint8 of the asked shape and labels
    int32."""
    for resize, shape in (("crop", SHAPE), ("stretch", (5, 7, 3)), ("pad", (8, 11, 3))):
        (batch,) = take(
            loader.train_batches(dataclasses.replace(data, resize=resize), shape, 8, 0), 1
        )
        assert batch.keys() == {"image", "label"}
        assert batch["image"].shape == (8, *shape) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32


def test_train_batches_of_a_resumed_run_are_those_of_an_uninterrupted_one(data):
    """Batches from any start on are those that a run from step 0 has there, in the middle of an
    epoch too; another seed gives others, and no two batches are the same."""
    full = take(loader.train_batches(data, SHAPE, 8, 3), 30)  # epochs end within batches
    for start in (1, 11, 29):
        assert same(take(loader.train_batches(data, SHAPE, 8, 3, start), 30 - start), full[start:])
    assert not same(take(loader.train_batches(data, SHAPE, 8, 4), 1), full[:1])
    assert not any(same([a], [b]) for a, b in itertools.combinations(full, 2))


def test_train_batches_have_every_image_once_per_epoch(data):
    """Each third of three epochs has the same images in another order; the second epoch of a seed
    is not the first of the next."""
    plain = dataclasses.replace(data, resize="stretch")
    stream = np.concatenate(
        [b["image"] for b in take(loader.train_batches(plain, SHAPE, 9, 0), 30)]
    )
    epochs = [[image.tobytes() for image in epoch] for epoch in np.split(stream, 3)]
    assert len(set(epochs[0])) == 90
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert sum(a == b for a, b in zip(*epochs[:2], strict=True)) < 20
    assert sum(a == b for a, b in zip(*epochs[1:], strict=True)) < 20
    # The second epoch of one seed is not the first of the next.
    next_seed = take(loader.train_batches(plain, SHAPE, 9, 1), 10)
    assert [i.tobytes() for b in next_seed for i in b["image"]] != epochs[1]


def test_crops_are_drawn_anew_for_every_image_and_epoch(data):
    """Three epochs of 90 images give more than 150 different crops: fixed crops would give 90."""
    cropped = np.concatenate(
        [b["image"] for b in take(loader.train_batches(data, SHAPE, 9, 0), 30)]
    )
    assert (
        len({image.tobytes() for image in cropped}) > 150
    )  # of 270; 90 images have at most 3 x 4 places each


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_flips_are_drawn_anew_and_change_nothing_else(data, resize):
    """The batches without flips, about half of their images mirrored; an image is not mirrored in
    every epoch. A run that resumes draws the same ones."""
    still = dataclasses.replace(data, resize=resize)
    flipped = dataclasses.replace(still, flip=True)
    plain, moved = (
        np.concatenate([b["image"] for b in take(loader.train_batches(config, SHAPE, 9, 0), 20)])
        for config in (still, flipped)
    )
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(plain, moved, strict=True)])
    np.testing.assert_array_equal(
        moved, np.where(mirrored[:, None, None, None], plain[:, :, ::-1], plain)
    )
    assert 60 < mirrored.sum() < 120 and (mirrored[:90] != mirrored[90:]).any()
    resumed = take(loader.train_batches(flipped, SHAPE, 9, 0, 7), 2)
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in resumed]), moved[63:81])
    (held_out,) = take(loader.eval_batches(flipped, SHAPE, 50), 1)
    np.testing.assert_array_equal(
        held_out["image"], next(iter(loader.eval_batches(still, SHAPE, 50)))["image"]
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_see_the_batch_of_one(data, hosts):
    """The rows that each of several hosts loads, put together, are the batches of one host."""
    full = take(loader.train_batches(data, SHAPE, 8, 0, 7), 6)
    parts = [
        take(loader.train_batches(data, SHAPE, 8, 0, 7, rows=range(host, 8, hosts)), 6)
        for host in range(hosts)
    ]
    for step, batch in enumerate(full):
        for key in batch:
            assert np.array_equal(
                np.stack([p[step][key] for p in parts], 1).reshape(batch[key].shape), batch[key]
            )


def test_eval_batches_are_one_pass_with_a_padded_end(data):
    """Every image comes once and in order, the mask is false for the padding of the last batch,
    which is zero, and hosts together have the batches of one."""
    full = list(loader.eval_batches(data, SHAPE, 16))
    assert [b["mask"].sum() for b in full] == [16, 16, 16, 2]
    assert all(b["image"].shape == (16, *SHAPE) and b["mask"].dtype == bool for b in full)
    split = sources.open_split(data, data.eval_split)
    labels = np.concatenate([b["label"][b["mask"]] for b in full])
    assert labels.tolist() == [e["label"] for e in split]
    assert not full[-1]["image"][2:].any()
    parts = [
        list(loader.eval_batches(data, SHAPE, 16, split=split, rows=range(h, 16, 4)))
        for h in range(4)
    ]
    for step, batch in enumerate(full):
        for key in batch:
            assert np.array_equal(
                np.stack([p[step][key] for p in parts], 1).reshape(batch[key].shape), batch[key]
            )
    assert [b["mask"].sum() for b in loader.eval_batches(data, SHAPE, 16, limit=20)] == [16, 4]
    assert [b["mask"].sum() for b in loader.eval_batches(data, SHAPE, 64, split="train[:3]")] == [3]


def test_passes_over_one_fitted_split_decode_an_image_once(data):
    """Two passes over a split that is held in memory read each image once, and give the batches of
    a pass that reads them."""
    split, read = sources.open_split(data, data.eval_split), []

    class Counted:
        def __len__(self):
            return len(split)

        def __getitem__(self, index):
            read.append(index)
            return split[index]

    fitted = loader.FittedSplit(Counted(), SHAPE, data.resize)
    first, second = (list(loader.eval_batches(data, SHAPE, 8, split=fitted)) for _ in range(2))
    assert sorted(read) == list(range(50))
    assert same(first, second) and same(first, list(loader.eval_batches(data, SHAPE, 8)))


def test_worker_processes_change_nothing(data):
    """Batches of two worker processes are those of threads."""
    threads = take(loader.train_batches(data, SHAPE, 8, 0, 5), 7)
    processes = take(loader.train_batches(dataclasses.replace(data, workers=2), SHAPE, 8, 0, 5), 7)
    assert same(threads, processes)


@pytest.mark.parametrize("workers", [0, 1])
def test_train_batches_name_an_image_that_does_not_fit(data, workers):
    """An image larger than the padding's target is refused in one line with both sizes, from a
    worker process too."""
    padding = dataclasses.replace(data, resize="pad", workers=workers)
    with pytest.raises(UserError, match="8 x 8 pixels, more than the 4 x 4") as error:
        next(loader.train_batches(padding, (4, 4, 1), 8, 0))
    assert "\n" not in str(error.value)


def test_mistakes_are_named_before_the_first_batch(data):
    """A batch larger than the data set and a number of channels that images do not have are refused
    when the stream is made."""
    with pytest.raises(
        UserError,
        match=r"has 90 images, too few for a batch of 91; give --config\.batch_size=90 or",
    ):
        loader.train_batches(data, SHAPE, 91, 0)
    with pytest.raises(UserError, match="1 or 3 channels"):
        loader.eval_batches(data, (16, 16, 4), 8)
