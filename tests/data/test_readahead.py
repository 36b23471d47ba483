"""How much is read ahead, by whom, and in how much shared memory."""

import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from helpers import small
from helpers.batches import same, take
from var_jax.config.train import DataConfig
from var_jax.data import loader, readahead, streams
from var_jax.errors import UserError

SHAPE = (8, 8, 1)


class Noted:
    """A split whose every read adds a line to a file: the process that reads, and the index."""

    class_names, fingerprint = ("all",), "0"

    def __init__(self, file, length: int = 4000, shape: tuple[int, int, int] = SHAPE):
        self.file, self.length, self.shape = str(file), length, shape

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with open(self.file, "a") as file:  # small appends are whole, from several processes too
            file.write(f"{os.getpid()} {index}\n")
        return {"image": np.full(self.shape, index % 256, np.uint8), "label": index % 10}

    @property
    def reads(self) -> list[tuple[int, int]]:
        with open(self.file) as file:
            return [tuple(map(int, line.split())) for line in file]

    def settled(self) -> int:
        """Returns the number of reads once there are no more."""
        before = -1
        while before != (count := len(self.reads)):
            before = count
            time.sleep(1.5)
        return count


def data(workers: int = 0) -> DataConfig:
    return DataConfig(resize="stretch", workers=workers)


@pytest.fixture
def cpus(monkeypatch):
    """Sets the processors that this process may use."""

    def set_to(count: int):
        monkeypatch.setattr(readahead, "available_cpus", lambda: count)

    return set_to


def test_train_batches_of_a_late_start_read_no_more_than_an_early_one(tmp_path):
    """A resumed run does not read what came before: the first batch at step 10^9 takes a few
    batches' records, where reading up to it would take 8 x 10^9."""
    split = Noted(tmp_path / "reads")
    take(loader.train_batches(data(), SHAPE, 8, 0, 10**9, split=split), 1)
    assert 8 <= len(split.reads) <= 8 * 40


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 3])
def test_read_ahead_stays_within_one_budget_per_host(workers, tmp_path, monkeypatch, cpus):
    """However many processes read, what they have read and nobody took is at most the budget:
    counted in records, once every buffer is full. A batch here is an eighth of it, and each worker
    would fill it by itself."""
    cpus(4)
    budget = 64 * 8
    monkeypatch.setattr(readahead, "AHEAD_BYTES", budget * readahead.STREAMS * SHAPE[0] * SHAPE[1])
    split = Noted(tmp_path / "reads")
    batches = loader.train_batches(data(workers), SHAPE, 64, 0, split=split)
    next(batches)
    read = split.settled()
    batches.close()
    assert 64 < read <= 64 + budget


@pytest.mark.parametrize("workers", [0, 2])
def test_read_ahead_counts_the_rows_that_this_process_loads(workers, tmp_path, monkeypatch, cpus):
    """Each of 8 hosts reads an eighth of a batch, and as many batches ahead as for a batch of that
    size; with four processes per host, each has a quarter of the budget."""
    cpus(2)
    alone = readahead.plan(32, 3 * 256 * 256, workers)
    of_all = readahead.plan(256, 3 * 256 * 256, workers)
    assert alone.buffer * alone.piece_rows < of_all.buffer * of_all.piece_rows
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 64 * 2**20)
    for processes in (1, 4):
        plan = readahead.plan(256, 3 * 256 * 256, workers, processes)
        ahead = plan.pieces * plan.piece_rows * 3 * 256 * 256
        assert ahead * readahead.STREAMS * processes <= 64 * 2**20


@pytest.mark.long
def test_batches_of_many_pieces_are_those_of_one(tmp_path, monkeypatch, cpus):
    """Pieces are a matter of memory alone: rows, their order and every value are the same, for part
    of the rows too."""
    cpus(3)
    split = Noted(tmp_path / "reads", 100)
    full = take(loader.train_batches(data(), SHAPE, 21, 0, 3, split=split), 9)
    monkeypatch.setattr(readahead, "PIECE_BYTES", 5 * 64)
    assert readahead.plan(21, 64, 0).piece_rows == 5
    for workers in (0, 2):
        assert same(
            take(loader.train_batches(data(workers), SHAPE, 21, 0, 3, split=split), 9), full
        )
    part = take(loader.train_batches(data(), SHAPE, 21, 0, 3, split=split, rows=range(1, 21, 2)), 9)
    assert same(part, [{key: value[1::2] for key, value in batch.items()} for batch in full])


@pytest.mark.long
def test_workers_and_threads_follow_the_processors_of_this_process(tmp_path, cpus):
    """16 workers on 2 processors would be in each other's way, with a set of buffers each: 2
    read."""
    cpus(2)
    split = Noted(tmp_path / "reads")
    take(loader.train_batches(data(workers=16), SHAPE, 8, 0, split=split), 8)
    assert len({process for process, _ in split.reads}) == 2
    cpus(8)
    assert (
        readahead.plan(8, 64, 0).threads,
        readahead.plan(8, 64, 2).threads,
        readahead.plan(8, 64, 16)[:2],
    ) == (8, 4, (8, 1))


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to processors"
)
def test_available_cpus_are_those_that_this_process_is_bound_to():
    """A process bound to one processor plans one thread and one worker."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from var_jax.data import loader, readahead\n"
        "print(readahead.available_cpus(), readahead.plan(8, 64, 0).threads, readahead.plan(8, 64, "
        "4).workers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1 1 1\n", done.stderr


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_passes_are_read_by_the_same_processes(workers, tmp_path, cpus):
    """Three evaluations, and a look at one batch between them: each is the whole split in its
    order, no record is read for a look, and the workers of the first read the last."""
    cpus(2)
    split = Noted(tmp_path / "reads", 50)
    passes = loader.eval_passes(data(workers), SHAPE, 8, split=split)
    expected = list(loader.eval_batches(data(), SHAPE, 8, split=split))
    own = len(split.reads)
    for _ in range(3):
        assert same(list(passes()), expected)
        assert same([next(passes())], expected[:1])
    passes.close()
    readers = [process for process, _ in split.reads[own:]]
    assert len(set(readers)) == max(1, workers)
    assert (os.getpid() in readers) == (workers == 0)


def test_eval_batches_read_anew_a_pass_that_was_left(tmp_path):
    """The second pass has all batches though the first one stopped after three, and the first one
    cannot go on."""
    split = Noted(tmp_path / "reads", 50)
    passes = loader.eval_passes(data(), SHAPE, 8, split=split)
    expected = list(loader.eval_batches(data(), SHAPE, 8, split=split))
    left = passes()
    assert same([next(left), next(left), next(left)], expected[:3])
    assert same(list(passes()), expected)
    with pytest.raises(RuntimeError, match="another one"):
        next(left)
    full = loader.eval_passes(data(), SHAPE, 64, split=split)  # one batch
    assert same(list(full()), list(loader.eval_batches(data(), SHAPE, 64, split=split)))
    assert same(list(full()), list(full()))
    passes.close()
    full.close()


@pytest.mark.parametrize(
    ("shapes", "keeps"), [(((8, 8, 1),), True), (((8, 8, 1), (8, 80, 1)), False)]
)
def test_fitted_split_caches_only_where_all_images_fit(shapes, keeps, tmp_path, monkeypatch):
    """100 images in the room of 150: each is read once, unless long ones, which are kept uncropped,
    take more than the room. In the room of 99, nothing is kept, since what one epoch leaves is
    rarely what the next begins with."""

    class Longer(Noted):
        def __getitem__(self, index):
            super().__getitem__(index)
            return {"image": np.zeros(shapes[index % len(shapes)], np.uint8), "label": 0}

    monkeypatch.setattr(loader, "CACHE_BYTES", 150 * 81)  # (1.125 * 8)^2
    split = Longer(tmp_path / "reads", 100)
    fitted = loader.FittedSplit(split, SHAPE, "crop")
    for _ in range(2):
        for i in range(100):
            fitted[i]
    assert len(split.reads) == (100 if keeps else 200)
    assert len(fitted._cached) == (100 if keeps else 0)
    for processes, room in ((1, 99), (2, 199)):
        monkeypatch.setattr(loader, "CACHE_BYTES", room * 81)
        fitted = loader.FittedSplit(split, SHAPE, "crop", processes)
        fitted[0]
        assert fitted._cached == {}


@pytest.fixture
def free_shared_memory(tmp_path, monkeypatch):
    def set_to(size: int):
        monkeypatch.setattr(readahead.shutil, "disk_usage", lambda path: SimpleNamespace(free=size))

    return set_to


def test_pieces_are_as_small_as_shared_memory_wants(free_shared_memory, cpus):
    """A container's usual 64 MB holds what 16 workers hand over of images of 256 pixels, since
    pieces get smaller; both streams together take at most half of what is free."""
    cpus(16)
    for megabytes in (64, 1024):
        free_shared_memory(megabytes * 2**20)
        plan = readahead.plan(256, 3 * 256 * 256, 16)
        shared = plan.workers * readahead.SHARED_PIECES * plan.piece_rows * 3 * 256 * 256
        assert plan.workers == 16 and 2 * readahead.STREAMS * shared <= megabytes * 2**20


def test_too_little_shared_memory_is_refused_by_name(free_shared_memory, cpus, tmp_path):
    """The error has the memory that is needed: 16 workers with 4 pieces each of one image of 1024
    pixels, in 2 streams that may fill half of the room, need 805.3 MB."""
    cpus(16)
    free_shared_memory(64 * 2**20)
    for make in (
        loader.train_batches,
        lambda *args, split: loader.eval_passes(*args[:3], split=split),
    ):
        with pytest.raises(
            UserError, match=r"data\.workers.*/dev/shm.* 67\.1 MB free.* 805\.3 MB"
        ) as error:
            make(data(workers=16), (1024, 1024, 3), 16, 0, split=Noted(tmp_path / "reads"))
        assert "\n" not in str(error.value)
    assert readahead.plan(16, 3 * 2**20, 0).workers == 0  # threads need none


def test_train_batches_name_shared_memory_that_ended_a_worker():
    """A worker's exit by SIGBUS becomes a line with the cause and the key to change."""

    def pieces():
        raise RuntimeError(
            "Worker process was terminated unexpectedly with exit code -7. Search the logs above"
        )
        yield

    class Pieces:
        def __next__(self):
            return next(pieces())

        def close(self):
            pass

    with pytest.raises(UserError, match=r"/dev/shm is full.*data\.workers"):
        next(streams.Batches(Pieces(), 4, 1))


def _namespace_missing() -> str:
    """Returns why no mount namespace can be made here; "" where it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root makes mount namespaces"
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"],
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        ""
        if done.returncode == 0
        else f"this system refuses a mount namespace: {done.stderr.strip()}"
    )


@pytest.fixture
def train_in_namespace(digits_dir, tmp_path):
    if why := _namespace_missing():
        pytest.skip(why)
    config = tmp_path / "small_run.py"
    config.write_text(small.CONFIG_FILE)

    def train(size: str) -> tuple[subprocess.CompletedProcess, object]:
        """`var-jax train` on batches of 128 x 64 x 64 x 3 bytes, of which eight workers hand over
        12 each."""
        workdir = tmp_path / f"run{size}"
        settings = {
            "data.data_dir": digits_dir,
            "data.workers": 8,
            "batch_size": 128,
            "steps": 2,
            "eval_images": 256,
            "tokenizer.in_channels": 3,
            "tokenizer.scales": "1,32",
        }
        command = [
            sys.executable,
            "-m",
            "var_jax",
            "train",
            "--config",
            f"{config}:tokenizer",
            "--workdir",
            str(workdir),
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]
        mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
        done = subprocess.run(
            ["unshare", "-m", "bash", "-c", f'{mount} && exec "$@"', "bash", *command],
            env={**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done, workdir

    return train


@pytest.mark.slow
def test_train_ends_well_in_the_shared_memory_of_a_container(train_in_namespace):
    """A container has 64 MB at /dev/shm, as Docker and Kubernetes give: batches pass through it."""
    done, workdir = train_in_namespace("64m")
    assert done.returncode == 0, done.stderr
    assert (workdir / "checkpoints" / "2").is_dir()


@pytest.mark.long
def test_train_refuses_shared_memory_without_room_for_an_image(train_in_namespace):
    """64 KB at /dev/shm are refused in one line before the workdir is made."""
    done, workdir = train_in_namespace("64k")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "data.workers" in done.stderr and "/dev/shm" in done.stderr and not workdir.exists()
