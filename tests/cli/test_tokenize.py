"""`var-jax tokenize`: the cache that it writes, several hosts, and mistakes."""

import json
import re
import socket

import numpy as np
import pytest

from helpers import processes, small
from var_jax.cli.main import main
from var_jax.data import token_cache


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv(
        "SLURM_NTASKS", "1"
    )  # this process has used JAX, and cannot join others any more


def command(digits_dir, model_dir, tmp_path, *rest) -> list[str]:
    config = tmp_path / "small_run.py"
    config.write_text(small.CONFIG_FILE)
    return [
        "tokenize",
        "--config",
        str(config),
        "--model",
        str(model_dir),
        "--out",
        str(tmp_path / "cache"),
        *map(str, rest),
        f"--config.data.data_dir={digits_dir}",
        "--config.data.train_split=train[:20]",
        "--config.data.eval_split=test[:10]",
    ]


def test_tokenize_writes_a_cache_and_says_so(digits_dir, model_dir, tmp_path, capsys):
    """The lines have images, views and tokens, and the cache opens with those counts."""
    assert (
        main(
            command(
                digits_dir,
                model_dir,
                tmp_path,
                "--views",
                2,
                "--batch",
                1,
                "--config.data.resize=crop",
            )
        )
        == 0
    )
    printed = capsys.readouterr()
    assert (
        "train: 20 images x 2 views of 17 tokens" in printed.out
        and "test: 10 images x 1 views" in printed.out
    )
    assert "50/50" in printed.err and "images/s" in printed.err.replace(" images", "images")
    assert token_cache.open_cache(tmp_path / "cache").counts == {"train": 20, "test": 10}


def test_tokenize_names_mistakes_and_writes_nothing(digits_dir, model_dir, tmp_path, capsys):
    """One line has the option and what would be right, and there is no cache."""
    for rest, message in (
        (("--views", 0), "--views is 0"),
        (("--views", 2), "1 with data.resize 'stretch'"),
        (("--splits", "train,val"), "--splits is train,val; it must be train, test or train,test"),
        (("--batch", 0), "--batch is 0"),
        (("--views", "many"), "invalid int value"),
        (("--process-id", 0), "--num-processes and --process-id go together"),
        (("--num-processes", 2, "--process-id", 2), "--process-id is 2; it must be from 0 to 1"),
        (("--model", tmp_path / "none"), "no model directory"),
        (("--config.data.train_split=val",), "has no split 'val'"),
        (("--config.data.name=digit",), "did you mean 'digits'"),
        (("--config.tokenizer.scales=1,2",), "tokenizer.scales is 1,2; the tokenizer in"),
    ):
        arguments = command(digits_dir, model_dir, tmp_path)
        split = [str(r) for r in rest]
        arguments = (
            arguments + split
            if split[0].startswith("--config")
            else arguments[:7] + split + arguments[7:]
        )
        assert main(arguments) == 2, rest
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
        assert not (tmp_path / "cache").exists()


def test_hosts_by_hand_share_files_alone(digits_dir, model_dir, tmp_path, capsys):
    """Two hosts that run one after the other make one cache from shared files alone: neither waits
    for the other."""
    arguments = command(digits_dir, model_dir, tmp_path)
    shared = [*arguments[:7], "--batch", "1", "--num-processes", "2", "--process-id"]
    assert main([*shared, "1", *arguments[7:]]) == 0
    assert "train: 20 images x 1 views" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no token cache|not finished"):
        token_cache.open_cache(tmp_path / "cache")
    assert len(list(tmp_path.glob("cache/*/*.array_record"))) == 1
    assert main([*shared, "0", *arguments[7:]]) == 0
    assert token_cache.open_cache(tmp_path / "cache").counts == {"train": 20, "test": 10}


TASK = """
import json, os
os.environ |= {"SLURM_JOB_ID": THE_JOB, "SLURM_STEP_NODELIST": "localhost"}
os.environ |= {"SLURM_NTASKS": str(count), "SLURM_STEP_NUM_TASKS": str(count)}
os.environ |= {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
from var_jax.train import token_shards, tokenize
from var_jax.cli.main import main
write = token_shards.write
def telling(directory, manifest, part, records):
    print("wrote", part.role, part.name, flush=True)
    write(directory, manifest, part, records)
token_shards.write, tokenize.SHARD_IMAGES = telling, 8
tokenize.tokenize.__kwdefaults__["shard_images"] = 8
sys.exit(main(json.loads(ARGUMENTS)))
"""


def slurm_job() -> str:
    """The number of a job whose processes find a free port, as JAX derives it from the number."""
    for job in range(1000, 1100):
        with socket.socket() as listener:
            if listener.connect_ex(("localhost", job % 2**12 + 65535 - 2**12 + 1)):
                return str(job)
    raise AssertionError("no free port")


@pytest.mark.long
def test_tasks_of_a_slurm_step_divide_the_work(digits_dir, model_dir, tmp_path):
    """Two processes that know only SLURM's variables write all files, and no file twice."""
    code = TASK.replace("THE_JOB", repr(slurm_job())).replace(
        "ARGUMENTS", repr(json.dumps(command(digits_dir, model_dir, tmp_path, "--batch", 1)))
    )
    ended = processes.scripts(code, tmp_path / "scripts", tmp_path / "programs", join=False)
    assert [code for code, _ in ended] == [0, 0], ended
    wrote = [re.findall(r"wrote \w+ (?:\S+)", output) for _, output in ended]
    assert [len(some) for some in wrote] == [3, 2] and len({*wrote[0], *wrote[1]}) == 5
    cache = token_cache.open_cache(tmp_path / "cache")
    assert cache.counts == {"train": 20, "test": 10}
    assert np.ptp([one["tokens"].sum() for one in cache.train]) > 0
    assert not list(tmp_path.glob("cache/*/*.tmp"))


@pytest.mark.slow
def test_hosts_with_other_settings_are_refused_together(digits_dir, model_dir, tmp_path):
    """The seed of the second task's crops is another one: its tokens would not be of the same
    cache."""
    arguments = command(digits_dir, model_dir, tmp_path)
    values = f"json.loads({json.dumps(arguments)!r}) + [f'--config.seed={{index}}']"
    code = TASK.replace("THE_JOB", repr(slurm_job())).replace("json.loads(ARGUMENTS)", values)
    ended = processes.scripts(code, tmp_path / "scripts", tmp_path / "programs", join=False)
    assert [code for code, _ in ended] == [2, 2], ended
    for _, output in ended:
        assert "process 1 (host " in output.splitlines()[-1] and "seed: 1 here, 0 there" in output
    assert not (tmp_path / "cache").exists()
