"""Sections of a training config that every objective may have: data, optimizer, losses and mesh."""

import dataclasses
from typing import Any, Literal

from var_jax.config.strict import RENAMED, require

# Where parameters and optimizer state lie.
Policy = Literal["auto", "fsdp", "zero1", "hsdp"]
# How images are brought to the model's size.
Resize = Literal["crop", "stretch", "pad"]
# Values of earlier versions, which configs, flags and files may still have.
RENAMED_RESIZE = {"whole": "stretch"}


def current_resize_name(name: str) -> Any:
    """Returns the present name of a resizing mode (`Resize`); any other text stays as it is."""
    return RENAMED_RESIZE.get(name, name)


def oldest_resize_name(name: str) -> str:
    """Returns the oldest name of a resizing mode, from which digests are computed.

    Runs, images and shards that an earlier version wrote thus keep their ids, fingerprints and
    stamps.
    """
    oldest = {current: earlier for earlier, current in RENAMED_RESIZE.items()}
    return oldest.get(name, name)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are brought to the model's size.

    Attributes:
      name: "digits", "fashion_mnist_idx", "image_folder", or any TFDS name such as "imagenet2012".
      data_dir: where TFDS keeps prepared data sets ("" for its default, ~/tensorflow_datasets).
      source_dir: the raw files of "fashion_mnist_idx" (idx files; "" for where Debian's
        dataset-fashion-mnist puts them) and "image_folder" (directory/class/file).
      train_split: name of the TFDS split that is trained on; slices such as "train[:90%]" are
        splits too.
      eval_split: name of the TFDS split that is held out.
      resize: "crop" (photographs: Lanczos, short side to 1.125 times the size, then a crop),
        "stretch" (Lanczos to the exact size; "whole", its older name, is accepted too) or "pad"
        (centered on black, not scaled).
      skip_bad_images: scan an image folder before the run, list the files that do not decode, and
        leave them out; otherwise such a file is an error that names it.
      workers: processes that decode images, at most as many as this process has processors; 0 for
        threads of the training process.
      flip: whether half of the training images are flipped horizontally, at random (never with
        digits or letters).
      tokens_dir: token cache written by `var-jax tokenize`; with it no image is read and no
        tokenizer is run.
    """

    name: str = "digits"
    data_dir: str = ""
    source_dir: str = ""
    train_split: str = "train"
    eval_split: str = "test"
    resize: Resize = dataclasses.field(default="crop", metadata={RENAMED: RENAMED_RESIZE})
    skip_bad_images: bool = False
    workers: int = 0
    flip: bool = False
    tokens_dir: str = ""

    def __post_init__(self):
        require(
            self.workers >= 0,
            "data.workers",
            self.workers,
            "0, for threads, or the number of processes",
        )
        object.__setattr__(self, "resize", current_resize_name(self.resize))


@dataclasses.dataclass(frozen=True)
class AdamWConfig:
    """AdamW and its schedules (published recipe by default).

    Attributes:
      base_lr: learning rate at batch 256; the rate used is base_lr * batch_size / 256.
      schedule: the learning rate after the warm-up. "lin0": constant for 5 % of the rest, then
        linear to the final ratio. "cosine": to the final ratio. "constant". "cooldown": constant,
        then 1 - sqrt down to the final ratio over the last `cooldown_steps`, so that runs of
        several lengths can branch off one constant run. "bent": two straight lines that meet after
        a share `bend` of the rest, half as far down as one line would be (published with
        progressive training).
      cooldown_steps: number of steps of the decay in the schedule "cooldown".
      bend: where the lines of the schedule "bent" meet; published: `transformer.progressive`.
      warmup_steps: steps in which the rate grows linearly.
      warmup_from: share of the rate that the warm-up begins with.
      final_lr_ratio: last rate over the peak.
      b1: Adam's decay of the gradients' average.
      b2: Adam's decay of the squared gradients' average.
      eps: added to Adam's denominator.
      weight_decay: decoupled decay of the weights, at the beginning.
      final_weight_decay: decay at the end, reached by a cosine.
      clip: global norm that gradients are clipped to; 0 for none.
    """

    base_lr: float = 1e-4
    schedule: Literal["lin0", "cosine", "constant", "cooldown", "bent"] = "lin0"
    cooldown_steps: int = 0
    bend: float = 0.5
    warmup_steps: int = 0
    warmup_from: float = 0.005
    final_lr_ratio: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    final_weight_decay: float = 0.05
    clip: float = 2.0

    def __post_init__(self):
        section = self._section()
        require(self.base_lr > 0, f"{section}.base_lr", self.base_lr, "positive")
        require(
            0 <= self.b1 < 1 and 0 <= self.b2 < 1,
            f"{section}.b1 and b2",
            (self.b1, self.b2),
            "from 0 to below 1",
        )
        require(0 < self.bend < 1, f"{section}.bend", self.bend, "above 0 and below 1")
        require(
            0 <= self.warmup_from <= 1, f"{section}.warmup_from", self.warmup_from, "from 0 to 1"
        )
        for name in (
            "warmup_steps",
            "cooldown_steps",
            "final_lr_ratio",
            "weight_decay",
            "final_weight_decay",
            "clip",
        ):
            require(getattr(self, name) >= 0, f"{section}.{name}", getattr(self, name), "0 or more")

    def _section(self) -> str:
        return "optimizer"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(AdamWConfig):
    """AdamW and its schedules (published recipe by default), and steps that are skipped.

    Attributes:
      skip_spikes: a step whose loss or global gradient norm is above this factor times its median
        over the last steps that were taken changes nothing, and is counted as "skipped_steps"; 0
        for none. A loss with an adversarial term is not compared, nor one that was negative.
      skip_spikes_window: number of those steps; none is skipped before there are so many.
    """

    skip_spikes: float = 0.0
    skip_spikes_window: int = 128

    def __post_init__(self):
        super().__post_init__()
        require(
            self.skip_spikes == 0 or self.skip_spikes > 1,
            "optimizer.skip_spikes",
            self.skip_spikes,
            "0, for none, or a factor above 1",
        )
        require(
            self.skip_spikes_window >= 1,
            "optimizer.skip_spikes_window",
            self.skip_spikes_window,
            "at least 1",
        )


@dataclasses.dataclass(frozen=True)
class DiscriminatorOptimizerConfig(AdamWConfig):
    """The same keys for the discriminator, whose first step is the run's first adversarial one."""

    base_lr: float = 1e-4
    schedule: Literal["lin0", "cosine", "constant", "cooldown", "bent"] = "cosine"
    final_lr_ratio: float = 0.3
    b1: float = 0.5
    b2: float = 0.9
    weight_decay: float = 0.005
    final_weight_decay: float = 0.005
    clip: float = 10.0

    def _section(self) -> str:
        return "discriminator_optimizer"


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Terms of the training losses: their weights, and the networks of the perceptual term.

    Attributes:
      l1: weight of |reconstruction - image|, mean over pixels, in the tokenizer's loss.
      l2: weight of (reconstruction - image)^2, mean over pixels, in the tokenizer's loss.
      vq: weight of the VQ loss (codebook and commitment terms) in the tokenizer's loss.
      kl: weight of the KL divergence of the features' posterior from a standard normal prior
        (tokenizer.codes "kl"). The divergence is summed over an image's features and divided by
        height * width * channels of the image, so that it is weighted against a mean `l1` as in
        Latent Diffusion, whose weight is the default.
      perceptual: weight of the perceptual distance between image and reconstruction; 0 for none.
      perceptual_network: "efficientnet" (stages of EfficientNet-Lite0) or "lpips" (VGG-16 with
        LPIPS's heads).
      perceptual_weights: checkpoint file of `perceptual_network`; "" takes EfficientNet-Lite0's
        from the package that the extra [perceptual] brings, and if that is not installed, the run
        leaves the term out with a warning.
      perceptual_heads: checkpoint file of LPIPS's heads.
      label_smoothing: label smoothing of the transformer's cross-entropy.
    """

    l1: float = 0.2
    l2: float = 1.0
    vq: float = 1.0
    kl: float = 1e-6
    perceptual: float = 0.0
    perceptual_network: Literal["efficientnet", "lpips"] = "efficientnet"
    perceptual_weights: str = ""
    perceptual_heads: str = ""
    label_smoothing: float = 0.0

    def __post_init__(self):
        for name in ("l1", "l2", "vq", "kl", "perceptual"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "0 or more")
        require(
            0 <= self.label_smoothing < 1,
            "loss.label_smoothing",
            self.label_smoothing,
            "from 0 to below 1",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along the `data` and `model` axes.

    Attributes:
      policy: where parameters and optimizer state lie (`devices.sharding`). "fsdp": sharded over
        the data axis, and gathered as the compiler arranges it, but for kernels of convolutions,
        which every device gathers. "hsdp": the weights of matrix
        products are gathered in each pass, in the dtype of the computation, and their gradients
        summed in parts. "zero1": likewise, but they are gathered once per step and kept until the
        backward pass. Both may have `replicas` groups of devices. "auto": "zero1" where memory is
        estimated to suffice, else "hsdp" (`train.memory_rule`).
      replicas: into how many groups of devices the data axis is divided, each of which holds a
        whole copy of the state; 1 with "fsdp". 0 for the fewest whose devices divide the model.
      compiler_options: options of the compiler for the training step, as "NAME=VALUE,...", which
        only one kind of device may know; `var-jax aot --search` proposes some for TPUs.
      data: devices along the axis that batches and parameters are spread over. With -1 these are
        the devices that `model` leaves, and a larger model axis is chosen if `data` would not
        divide the model or the batch (`train.mesh_choice`); parameters that no axis divides are
        replicated, with a warning that states their bytes.
      model: devices along the axis of tensor parallelism; -1 for the devices that `data` leaves.
      slices: TPU slices joined by the data-center network; `data` counts the devices of all of
        them. Hosts with GPUs are found without it: 1 takes them as they are.
      replicated_share: largest share of the parameters' bytes that may be replicated on every
        device; more stops the run at its start. Parameters that no chosen mesh divides do not count
        if `data` is -1.
    """

    data: int = -1
    model: int = 1
    slices: int = 1
    replicated_share: float = 0.1
    policy: Policy = "fsdp"
    replicas: int = 0
    compiler_options: str = ""

    def __post_init__(self):
        for axis in ("data", "model"):
            size = getattr(self, axis)
            require(
                size >= 1 or size == -1, f"mesh.{axis}", size, "at least 1, or -1 for what is left"
            )
        require(
            (self.data, self.model) != (-1, -1), "mesh", "-1 x -1", "given for at least one axis"
        )
        require(self.slices >= 1, "mesh.slices", self.slices, "at least 1")
        require(self.replicas >= 0, "mesh.replicas", self.replicas, "at least 1, or 0 to choose it")
        require(
            self.policy != "fsdp" or self.replicas <= 1,
            "mesh.replicas",
            self.replicas,
            "1 or 0 with mesh.policy 'fsdp'; 'hsdp' has groups of devices",
        )
        require(
            all(name and value for name, value in self._options()),
            "mesh.compiler_options",
            self.compiler_options,
            "NAME=VALUE, several of them between commas",
        )
        require(
            0 <= self.replicated_share <= 1,
            "mesh.replicated_share",
            self.replicated_share,
            "from 0 to 1",
        )

    @property
    def options_of_compiler(self) -> dict[str, str]:
        """The compiler's options by name."""
        return dict(self._options())

    def _options(self) -> list[tuple[str, str]]:
        parts = [part.partition("=") for part in self.compiler_options.split(",") if part]
        return [(name.strip(), value.strip()) for name, _, value in parts]
