"""Malformed run directories, tables, configs, data sets and flags."""

import json
from pathlib import Path

import numpy as np

from helpers import small
from malformed.inputs import (
    Case,
    config,
    folder,
    idx,
    idx_files,
    loop,
    run_file,
    sweep,
    text,
    with_run_file,
    write,
)
from var_jax.config.strict import plain

FIT = "fit a.csv --out out --resamples 0"
TRAIN = "train --config run.py:tokenizer --workdir out --config.data.data_dir=tfds"
TRAIN_D2 = TRAIN.replace("tokenizer", "d2")
IDX = "--config.data.name=fashion_mnist_idx --config.data.source_dir=idx"
FOLDER = "--config.data.name=image_folder --config.data.source_dir=photos"
SWEEP = "sweep --config run.py:d2 --workdir out --dry-run"
RUNS = "run,params,loss\n" + "".join(f"r{i},{1e6 * 2**i},{3 - i * 0.2}\n" for i in range(5))
HUGE = (2**32 - 1,) * 3
TRAIN_IMAGES = "idx/train-images-idx3-ubyte"


def small_run():
    """The workdir of a run of the small model."""
    config = small.train_config("transformer", "data")
    write("w/config.json", json.dumps(plain(config)))
    write("w/status.json", '{"step": 1, "steps": 3, "state": "done"}')


CASES = {
    # progress and tables of runs
    "status_text_step": Case(
        "status.json: a text as its step",
        "status w",
        "w/status.json: step is 'many'",
        text("w/status.json", '{"step": "many"}'),
    ),
    "status_nan_step": Case(
        "status.json: NaN as its step",
        "status w",
        "w/status.json: step is nan",
        text("w/status.json", '{"step": NaN, "state": "done"}'),
    ),
    "status_cut": Case(
        "status.json that is cut short",
        "status w",
        "w/status.json does not read as JSON",
        text("w/status.json", "{"),
    ),
    "status_state": Case(
        "status.json: a state that does not exist",
        "status w",
        "w/status.json: state is 'dancing'",
        text("w/status.json", '{"state": "dancing"}'),
    ),
    "status_against": Case(
        "config.json: a run with other codes than the published log's",
        "status w --against published",
        "tokenizer.vocab_size is 16 and that of the log 4096",
        small_run,
    ),
    "plan_chip": Case(
        "--chip that is not in the table",
        "plan --config run.py:d2 --chip h20",
        "did you mean 'h200'",
        run_file(),
    ),
    "aot_gpu": Case(
        "--topology that names a GPU",
        "aot --config run.py:d2 --topology h100:8",
        "a GPU; aot compiles for TPU slices alone",
        run_file(),
    ),
    "sweep_of_texts": Case(
        "sweep.json: runs as texts",
        "status w",
        "run 0 in w/sweep.json is 'a'",
        text("w/sweep.json", '{"runs": ["a"]}'),
    ),
    "sweep_without_id": Case(
        "sweep.json: a run without an id",
        "status w",
        "id of run 0 in w/sweep.json is None",
        text("w/sweep.json", '{"runs": [{}]}'),
    ),
    "sweep_escapes": Case(
        "sweep.json: an id that leaves the directory",
        "status w",
        "id of run 0 in w/sweep.json is '../x'",
        text("w/sweep.json", '{"runs": [{"id": "../x"}]}'),
    ),
    "csv_long_field": Case(
        "a CSV with a field of 200,000 letters",
        FIT,
        "a.csv does not read as a table: field larger",
        text("a.csv", f"run,params,loss\n{'x' * 200_000},1,2\n"),
    ),
    "csv_utf16": Case(
        "a CSV in UTF-16", FIT, "a.csv is not UTF-8 text", text("a.csv", RUNS.encode("utf-16"))
    ),
    "jsonl_deep": Case(
        "a JSONL line of 100,000 brackets",
        FIT.replace("csv", "jsonl"),
        "a.jsonl line 1 is not a JSON object",
        text("a.jsonl", "[" * 100_000),
    ),
    "law_of_itself": Case(
        "a law of one column",
        f"{FIT} --law loss~loss",
        "has one column on both sides",
        text("a.csv", RUNS),
    ),
    "law_own_sigma": Case(
        "a law's column as its deviation",
        f"{FIT} --law loss~params --sigma loss",
        "--sigma 'loss' is a column of --law",
        text("a.csv", RUNS),
    ),
    "predict_twice": Case(
        "one input twice",
        f"{FIT} --predict params=1,params=2",
        "gives 'params' twice",
        text("a.csv", RUNS),
    ),
    "map_one_column": Case(
        "one column under two names",
        f"{FIT} --map loss=loss,params=loss",
        "gives 'loss' two names",
        text("a.csv", RUNS),
    ),
    "resamples_endless": Case(
        "10^12 resamples",
        "fit a.csv --out out --resamples 1000000000000",
        "--resamples is 1000000000000",
        text("a.csv", RUNS),
    ),
    "huber_infinite": Case(
        "an infinite Huber threshold", f"{FIT} --huber inf", "--huber is inf", text("a.csv", RUNS)
    ),
    "loss_400_digits": Case(
        "losses of 400 digits",
        FIT.replace("csv", "jsonl"),
        "0: loss is 1000000000000000000000000000000000000000, not a positive number",
        text(
            "a.jsonl",
            "".join(f'{{"run": {i}, "params": {2**i}000, "loss": {10**400}}}\n' for i in range(5)),
        ),
    ),
    # configs, data and sweeps
    "config_link_loop": Case(
        "a config that links to itself",
        "config run.py",
        "no config file 'run.py'; it is a link that leads to no file",
        lambda: loop("run.py"),
    ),
    "config_recursion": Case(
        "a config without an end",
        "config run.py",
        "run.py, line 2: get_config() ends in RecursionError",
        text("run.py", "def get_config(arg=''):\n    return get_config(arg)\n"),
    ),
    "config_binary": Case(
        "a program as a config",
        "config run.py",
        "run.py: the file ends in SyntaxError",
        text("run.py", b"\x7fELF\0\0"),
    ),
    "learning_rate_infinite": Case(
        "an infinite learning rate",
        f"{TRAIN} --config.optimizer.base_lr=inf",
        "base_lr is inf",
        run_file(),
    ),
    "steps_thousand": Case(
        "steps as 1e3",
        f"{TRAIN} --config.steps=1e3",
        "flag --config.steps=1e3: invalid literal for int()",
        run_file(),
    ),
    "photos_file": Case(
        "a file as the folder of images",
        f"{TRAIN} {FOLDER}",
        "'photos' is no directory",
        with_run_file(text("photos", "x")),
    ),
    "idx_huge": Case(
        "idx: 2^32 - 1 images by the header",
        f"{TRAIN} {IDX}",
        f"{TRAIN_IMAGES} holds 4 bytes for the shape (4294967295, 4294967295, 4294967295)",
        idx_files(lambda: write(TRAIN_IMAGES, idx(np.zeros((1, 2, 2), np.uint8), HUGE))),
    ),
    "idx_directory": Case(
        "idx: a directory as the images",
        f"{TRAIN} {IDX}",
        f"{TRAIN_IMAGES} cannot be read: Is a directory",
        idx_files(lambda: folder(TRAIN_IMAGES)),
    ),
    "cache_latin": Case(
        "a token cache whose manifest is no UTF-8",
        f"{TRAIN_D2} --config.tokenizer_dir=model --config.data.tokens_dir=cache",
        "cache/manifest.json does not read as JSON: 'utf-8' codec can't decode byte 0xff",
        with_run_file(text("cache/manifest.json", b"\xff{}")),
    ),
    "tokenize_views": Case(
        "10^11 views of images that are not cropped",
        "tokenize --config run.py:d2 --model model --out out --views 99999999999",
        "--views is 99999999999; it must be 1 with data.resize 'stretch'",
        run_file(),
    ),
    "sweep_interval": Case(
        "an infinite interval",
        f"{SWEEP} --interval inf",
        "--interval is inf",
        sweep("[{'steps': 3}]"),
    ),
    "sweep_price": Case(
        "NaN as a price", f"{SWEEP} --price nan", "--price is nan", sweep("[{'steps': 3}]")
    ),
    "sweep_of_pairs": Case(
        "get_sweep: pairs as a run",
        SWEEP,
        "returns [('steps', 3)] as run 0",
        sweep("[[('steps', 3)]]"),
    ),
    "sweep_key_number": Case(
        "get_sweep: a number as a key", SWEEP, "run 0 with the key 1;", sweep("[{1: 3}]")
    ),
    "sweep_key_flag": Case(
        "get_sweep: a flag as a key",
        SWEEP,
        "run 1 with the key '--config.steps'",
        sweep("[{'steps': 3}, {'--config.steps': 4}]"),
    ),
    "sweep_section": Case(
        "get_sweep: a section as a value",
        SWEEP,
        "it must be given as 'optimizer.base_lr'",
        sweep("[{'optimizer': {'base_lr': 1e-3}}]"),
    ),
    "sweep_array_for_number": Case(
        "get_sweep: an array for one number",
        SWEEP,
        "--config.optimizer.base_lr=(0.001, 0.002): could not convert string to float",
        sweep("[{'optimizer.base_lr': __import__('numpy').array([1e-3, 2e-3])}]"),
    ),
    "config_text_for_number": Case(
        "a config: a text for a number",
        "config run.py:d2",
        "a value of type str for steps (100); it must be of type int",
        config("config.steps = '100'"),
    ),
    "config_numpy_integer": Case(
        "a config: an integer of numpy",
        "config run.py:d2",
        "a value of type numpy.int64 for steps (3); it must be of type int",
        config("config.steps = __import__('numpy').int64(3)"),
    ),
    "config_path_for_text": Case(
        "a config: a path object for a text",
        "config run.py:d2",
        "type pathlib.PosixPath for source_dir (photos); it must be of type str",
        config("config.data.source_dir = __import__('pathlib').Path('photos')"),
    ),
    "config_integer_of_400_digits": Case(
        "a config: an integer of 400 digits",
        "config run.py:d2",
        "config.batch_size is 1000",
        config("config.batch_size = 10**400"),
    ),
    "config_none": Case(
        "a config: None for a number",
        "config run.py:d2",
        "config.steps is None",
        config("config.steps = None"),
    ),
    "bench_batches": Case(
        "a batch between two commas",
        "bench sample --config run.py --batch 1,,2",
        "--batch is 1,,2",
        run_file(),
    ),
    "topology_zero": Case(
        "a slice of no chips",
        "aot --config run.py --topology v5e:0x0",
        "--topology is v5e:0x0; it must be a chip and the slice's shape",
        run_file(),
    ),
    "bench_config_binary": Case(
        "a program as the config of a measurement",
        "bench train --config run.py",
        "run.py: the file ends in SyntaxError",
        lambda: write("run.py", b"\0\x7fELF"),
    ),
    "aot_config_text": Case(
        "a config for a slice: a text for a number",
        "aot --config run.py:d2 --topology v5e:2x2",
        "a value of type str for steps (100)",
        config("config.steps = '100'"),
    ),
    "quickstart_config_list": Case(
        "a config of the quickstart that is a list",
        "quickstart --config run.py --workdir out",
        "must return a ConfigDict",
        lambda: write("run.py", "def get_config(arg=''):\n    return [1]\n"),
    ),
    "tokenize_model_cut": Case(
        "a tokenizer's weights cut off",
        "tokenize --config run.py:d2 --model model --out out --config.data.data_dir=tfds",
        "model/tokenizer.safetensors does not read as safetensors",
        lambda: (run_file()(), write("model/tokenizer.safetensors", b"\x08\0\0\0")),
    ),
    "demo_model_cut": Case(
        "a page of a model whose weights are cut off",
        "demo --model model --port 1",
        "model/transformer.safetensors does not read as safetensors",
        lambda: write("model/transformer.safetensors", b"\x08\0\0\0"),
    ),
    "demo_model_page": Case(
        "a page of a model whose config is a web page",
        "demo --model model --port 1",
        "model/model.json does not read as JSON: it is an HTML page",
        lambda: write("model/model.json", "<!DOCTYPE html><html></html>"),
    ),
    "quickstart_samples": Case(
        "NaN samples",
        "quickstart --config run.py --workdir out --samples nan",
        "invalid int value: 'nan'",
        run_file(),
    ),
    "publish_one_word": Case(
        "a repository without its owner",
        "publish --model model --to digits",
        "--to is 'digits'; it must be OWNER/NAME",
    ),
    "publish_cut_model": Case(
        "a model whose weights are cut short",
        "publish --model model --to owner/digits",
        "model/transformer.safetensors",
        text("model/transformer.safetensors", b"\x10"),
    ),
    "download_unknown": Case(
        "a model that was not released",
        "download var-d17 --out out",
        "var-d17",
    ),
    "download_over_file": Case(
        "a file as the model directory",
        "download var-d16 --out out",
        "out",
        text("out", "mine"),
    ),
    "adapter_cut": Case(
        "an adapter that is cut short",
        "sample --model model --adapter mug --labels 0 --out out.png",
        "mug/adapter.safetensors",
        text("mug/adapter.safetensors", b"\x10\x00"),
    ),
    "adapter_of_weights": Case(
        "a model's weights as an adapter",
        "sample --model model --adapter mug --labels 0 --out out.png",
        "mug/adapter.safetensors is no adapter's file",
        lambda: write(
            "mug/adapter.safetensors", Path("model/transformer.safetensors").read_bytes()
        ),
    ),
    "generate_thousand": Case(
        "a number as 1e3",
        "generate --model model --num 1e3 --out out.npz",
        "invalid int value: '1e3'",
    ),
    "generate_over_directory": Case(
        "a directory as the sample set",
        "generate --model model --num 2 --out out.npz",
        "it is a directory",
        lambda: folder("out.npz"),
    ),
}
