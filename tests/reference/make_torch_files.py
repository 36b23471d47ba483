"""Made the .pth files beside it, with PyTorch 2.13.0: `python make_torch_files.py`. Tests read the
files only."""

import collections
from pathlib import Path

import torch

HERE = Path(__file__).parent


def tensors() -> dict[str, torch.Tensor]:
    counted = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return collections.OrderedDict(
        plain=counted,
        transposed=counted.T,
        row=counted[1],
        half=counted.half(),
        brain=counted.bfloat16(),
        double=counted.double(),
        whole=torch.arange(3),
        flags=torch.tensor([True, False]),
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 2),
        parameter=torch.nn.Parameter(counted[:1]),
    )


def main():
    torch.save(tensors(), HERE / "torch_zip.pth")
    torch.save(tensors(), HERE / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    model = torch.nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).reshape(3, 2))
        model.bias.copy_(torch.arange(3.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).reshape(3, 2))
    torch.save(
        {
            "epoch": 3,
            "iter": 0,
            "args": {"exp_name": "a name", "tlr": 1e-4, "pn": (1, 2, 3), "device": None},
            "trainer": {
                "config": {"depth": 2},
                "var_wo_ddp": model.state_dict(),
                "vae_local": model.state_dict(),
                "var_opt": {"optimizer": optimizer.state_dict(), "scaler": {"scale": 65536.0}},
            },
        },
        HERE / "torch_training.pth",
    )


if __name__ == "__main__":
    main()
