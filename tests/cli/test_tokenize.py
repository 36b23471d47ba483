import small

from var_jax.cli.main import main
from var_jax.data import tokens


def command(digits_dir, model_dir, tmp_path, *rest) -> list[str]:
    config = tmp_path / "small_run.py"
    config.write_text(small.CONFIG_FILE)
    return ["tokenize", "--config", str(config), "--model", str(model_dir), "--out", str(tmp_path / "cache"),
            *map(str, rest), f"--config.data.data_dir={digits_dir}", "--config.data.train_split=train[:20]",
            "--config.data.eval_split=test[:10]"]


def test_the_command_writes_a_cache_and_says_so(digits_dir, model_dir, tmp_path, capsys):
    assert main(command(digits_dir, model_dir, tmp_path, "--views", 2, "--batch", 1, "--config.data.resize=crop")) == 0
    printed = capsys.readouterr()
    assert "train: 20 images x 2 views of 17 tokens" in printed.out and "test: 10 images x 1 views" in printed.out
    assert "50/50" in printed.err and "images/s" in printed.err.replace(" images", "images")
    assert tokens.open_cache(tmp_path / "cache").counts == {"train": 20, "test": 10}


def test_mistakes_are_one_line_and_write_nothing(digits_dir, model_dir, tmp_path, capsys):
    for rest, message in (
            (("--views", 0), "--views is 0"),
            (("--views", 2), "1 with data.resize 'whole'"),
            (("--splits", "train,val"), "--splits is train,val; it must be train, test or train,test"),
            (("--batch", 0), "--batch is 0"),
            (("--views", "many"), "invalid int value"),
            (("--model", tmp_path / "none"), "no model directory"),
            (("--config.data.train_split=val",), "has no split 'val'"),
            (("--config.data.name=digit",), "did you mean 'digits'"),
    ):
        arguments = command(digits_dir, model_dir, tmp_path)
        split = [str(r) for r in rest]
        arguments = arguments + split if split[0].startswith("--config") else arguments[:7] + split + arguments[7:]
        assert main(arguments) == 2, rest
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
        assert not (tmp_path / "cache").exists()
