"""The PyTorch side of the benchmark computes the numbers of the published code."""

import json

import numpy as np
import pytest

from helpers.scripts import load_script
from test_parity import CASES, REFERENCE, load

torch = pytest.importorskip("torch", reason="torch comes with the extra [torch]")
TOLERANCE = 1e-4  # of an array's largest magnitude, as in test_parity


def relative_error(actual, reference) -> float:
    actual = actual.detach().numpy()
    assert actual.shape == reference.shape
    return float(np.abs(actual - reference).max() / np.abs(reference).max())


@pytest.fixture(params=CASES)
def models(request):
    """A reference case, and the two PyTorch models with its weights."""
    case = load(request.param)
    tokenizer = load_script("torch_tokenizer").Tokenizer(case.config.tokenizer)
    transformer = load_script("torch_transformer").Transformer(case.config.transformer)
    for module, state in zip((tokenizer, transformer), case.states, strict=True):
        module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    return case, tokenizer, transformer.eval()


def test_tokenizer_gives_the_published_tokens_and_image(models):
    """The arrays that the JAX tokenizer is held to, from the same weights."""
    case, tokenizer, _ = models
    tokens = tokenizer.encode(torch.from_numpy(case.arrays["image_nchw"]))
    np.testing.assert_array_equal(tokens, case.arrays["tokens"])
    assert relative_error(tokenizer.decode(tokens), case.arrays["recon_nchw"]) <= TOLERANCE
    inputs = tokenizer.teacher_input(tokens)
    assert relative_error(inputs, case.arrays["teacher_input"]) <= TOLERANCE


def test_transformer_gives_the_published_logits_and_gradients(models):
    """Logits, the loss and its gradients are all that a training step computes before the
    optimizer."""
    case, _, transformer = models
    labels = torch.from_numpy(case.arrays["label"]).long()
    logits = transformer(torch.from_numpy(case.arrays["teacher_input"]), labels)
    assert relative_error(logits, case.arrays["logits"]) <= TOLERANCE
    tokens = torch.from_numpy(case.arrays["tokens"]).long()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    parameters = dict(transformer.named_parameters())
    prefix = "var_grad/"
    errors = {
        key: relative_error(parameters[key.removeprefix(prefix)].grad, value)
        for key, value in case.arrays.items()
        if key.startswith(prefix)
    }
    assert errors and {key: e for key, e in errors.items() if e > TOLERANCE} == {}


def test_generate_gives_the_published_greedy_tokens(models):
    """Generation with guidance and only the largest logit has no randomness."""
    case, tokenizer, transformer = models
    name = next(name for name in CASES if load(name) is case)
    cfg = json.loads((REFERENCE / f"{name}.json").read_text())["config"]["cfg"]
    generate = load_script("torch_transformer").generate
    labels = torch.from_numpy(case.arrays["label"]).long()
    images, tokens = generate(tokenizer, transformer, labels, cfg=cfg, top_k=1, top_p=0.0)
    np.testing.assert_array_equal(tokens, case.arrays["greedy_tokens"])
    assert relative_error(images, case.arrays["greedy_image_nchw"]) <= TOLERANCE


def test_rows_have_the_same_sizes_on_both_sides():
    """The number of weights of the PyTorch transformer is that of the JAX one, at a size of the
    benchmark; the meta device takes no memory."""
    from var_jax.models import flops

    bench = load_script("cpu_bench")
    config = bench.config_of(bench.ROWS["small_train_8"]).transformer
    with torch.device("meta"):
        transformer = load_script("torch_transformer").Transformer(config)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count == flops.param_count(config)["total"]


def test_cpu_bench_names_an_unknown_row(capsys):
    """The message holds the row that is not there, and those that are."""
    bench = load_script("cpu_bench")
    with pytest.raises(SystemExit) as stop:
        bench.main(["--rows", "d16_train,d17"])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "d17" in message and "small_train_8" in message


def test_cpu_bench_skips_rows_that_the_file_holds(capsys, tmp_path):
    """A row of the file is printed and not measured: no process is started for it."""
    bench = load_script("cpu_bench")
    ratios = {"cpu_seconds_over_torch": 0.5, "seconds_over_torch": 0.6}
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps({"encode": {"ratios": ratios, "over_floor": {"jax": 1.5}}}))
    assert bench.main(["--rows", "encode", "--json", str(file), "--torch", "/no/python"]) == 0
    assert "encode: ours over torch 0.50" in capsys.readouterr().out
