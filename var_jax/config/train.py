"""What a training run is: frozen dataclasses, and the locked ConfigDict that config files start
from."""

import dataclasses
from typing import Literal

from ml_collections import config_dict

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.strict import build, plain, require
from var_jax.config.tokenizer_training import AdversarialConfig, CodebookConfig, ProgressiveConfig
from var_jax.errors import UserError, require_path

# Keys that 0 leaves to the data, and the values (channels, classes) of data sets that are the same
# everywhere.
SIZES_OF_DATA = ("tokenizer.in_channels", "transformer.num_classes")
FIXED_SIZES = {"digits": (1, 10), "fashion_mnist_idx": (1, 10)}


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
        "whole" (Lanczos to the exact size) or "pad" (centred on black, not scaled).
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
    resize: Literal["crop", "whole", "pad"] = "crop"
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


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedules (published recipe by default).

    Attributes:
      base_lr: learning rate at batch 256; the rate used is base_lr * batch_size / 256.
      schedule: after the warm-up, "lin0" (constant for 5 % of what is left, then linear to the
        final ratio), "cosine", "constant", "cooldown": constant, then 1 - sqrt down to the final
        ratio over the last `cooldown_steps` (so that runs of several lengths can branch off one
        constant run), or "bent": two straight lines that meet after a share `bend` of what is left,
        half as far down as one line would be (published with progressive training).
      cooldown_steps: of the schedule "cooldown".
      bend: where the lines of the schedule "bent" meet; published: `transformer.progressive`.
      warmup_steps: steps in which the rate grows linearly.
      warmup_from: share of the rate that the warm-up begins with.
      final_lr_ratio: last rate over the peak.
      b1: Adam's decay of the gradients' average.
      b2: Adam's decay of the squared gradients' average.
      eps: Adam's number in the denominator.
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
class DiscriminatorOptimizerConfig(OptimizerConfig):
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
    """Weights of the training losses.

    Attributes:
      l1: of |reconstruction - image|, mean over pixels, in the tokenizer's loss.
      l2: of (reconstruction - image)^2, mean over pixels, in the tokenizer's loss.
      vq: of the quantizer's loss in the tokenizer's.
      perceptual: of the perceptual distance between image and reconstruction; 0 for none.
      perceptual_network: "efficientnet" (stages of EfficientNet-Lite0) or "lpips" (VGG-16 with
        LPIPS's heads).
      perceptual_weights: weight file of the network; "" takes EfficientNet-Lite0's from the package
        that the extra [perceptual] brings, and where that is not installed, the run leaves the term
        out with a warning.
      perceptual_heads: weight file of LPIPS's heads.
      label_smoothing: of the transformer's cross-entropy.
    """

    l1: float = 0.2
    l2: float = 1.0
    vq: float = 1.0
    perceptual: float = 0.0
    perceptual_network: Literal["efficientnet", "lpips"] = "efficientnet"
    perceptual_weights: str = ""
    perceptual_heads: str = ""
    label_smoothing: float = 0.0

    def __post_init__(self):
        for name in ("l1", "l2", "vq", "perceptual"):
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
      data: devices along the axis that batches and parameters are spread over. With -1 these are
        what `model` leaves, and a larger model axis is chosen where `data` would not divide the
        model or the batch (`train.mesh_choice`); what no axis divides is replicated, with a warning
        that gives its bytes.
      model: devices along the axis of tensor parallelism; -1 for what `data` leaves.
      slices: TPU slices joined by the data-centre network; `data` counts the devices of all of
        them. Hosts with GPUs are found without it: 1 takes them as they are.
      replicated_share: of the parameters' bytes, what may lie whole on every device; more stops the
        run at its start. Parameters that no chosen mesh divides do not count where `data` is -1.
    """

    data: int = -1
    model: int = 1
    slices: int = 1
    replicated_share: float = 0.1

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
        require(
            0 <= self.replicated_share <= 1,
            "mesh.replicated_share",
            self.replicated_share,
            "from 0 to 1",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run of one stage.

    Attributes:
      stage: which of the two models is trained.
      seed: of initialisation, data order and dropout.
      steps: length of the run; steps * batch_size / images is the number of passes over the
        training images.
      batch_size: images per step over all devices.
      microbatches: parts a batch is computed in, gradients averaged.
      log_every: steps between two records of the training loss; the last step has one too.
      eval_every: steps between two evaluations on held-out images; the last step has one too.
      checkpoint_every: steps between two checkpoints; the last step has one too.
      keep_checkpoints: number of newest checkpoints that are kept.
      eval_images: held-out images that an evaluation takes at most; 0 for all.
      sample_classes: columns of the sample grid, one class each.
      ema: decay of the averaged weights used for evaluation and sampling; 0 for none.
      ema_warmup: how slowly the average settles: its decay is at most (n + 1) / (n + 10) after n of
        these numbers of steps.
      tokenizer_dir: model directory of the tokenizer whose tokens the transformer learns; its sizes
        replace the `tokenizer` section.
      init_from: model directory whose weights the run starts from; a class embedding of another
        class count starts afresh.
      branch_from: workdir of another run of the same model and optimizer, whose whole state
        (optimizer and average too) this run starts from; it goes on to `steps`.
      branch_step: step of that state.
      keep_steps: steps whose checkpoints are never deleted, such as those that other runs branch
        from.
    """

    stage: Literal["tokenizer", "transformer"] = "tokenizer"
    seed: int = 0
    steps: int = 1000
    batch_size: int = 64
    microbatches: int = 1
    log_every: int = 20
    eval_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    eval_images: int = 0
    sample_classes: int = 10
    ema: float = 0.0
    ema_warmup: int = 1
    tokenizer_dir: str = ""
    init_from: str = ""
    branch_from: str = ""
    branch_step: int = 0
    keep_steps: tuple[int, ...] = ()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    transformer: TransformerConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    discriminator_optimizer: DiscriminatorOptimizerConfig = DiscriminatorOptimizerConfig()
    codebook: CodebookConfig = CodebookConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        require(
            self.stage == "tokenizer" or self.transformer is not None,
            "transformer",
            None,
            "a section of keys in the transformer's stage",
        )
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        for name in (
            "steps",
            "batch_size",
            "microbatches",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "sample_classes",
            "ema_warmup",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("eval_images", "branch_step"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(
            min(self.keep_steps, default=0) >= 0, "keep_steps", self.keep_steps, "steps from 0 on"
        )
        require(
            self.batch_size % self.microbatches == 0,
            "microbatches",
            self.microbatches,
            f"a divisor of batch_size {self.batch_size}",
        )
        require(0 <= self.ema < 1, "ema", self.ema, "from 0 to below 1")
        if self.stage == "tokenizer":
            self.progressive.check(self.tokenizer)
            health = self.codebook
            require(
                self.tokenizer.codes != "bsq"
                or (health.init == "normal" and not health.revive_threshold),
                "codebook.init and revive_threshold",
                (health.init, health.revive_threshold),
                "'normal' and 0 with tokenizer.codes 'bsq', which have no codebook",
            )

    @property
    def adversarial_from(self) -> int | None:
        """Steps done before the first adversarial one; None where there is none."""
        adversarial = self.adversarial
        on = self.stage == "tokenizer" and adversarial.weight > 0
        return self.steps_of(adversarial.start) if on else None

    @property
    def revives(self) -> bool:
        """Whether dead codes are moved."""
        return self.stage == "tokenizer" and self.codebook.revive_threshold > 0

    def steps_of(self, value: float) -> int:
        """A number of steps: a value below 1 is a share of the run's."""
        return round(value * self.steps) if value < 1 else round(value)

    @property
    def model(self) -> ModelConfig:
        """What the run's model directory holds: the tokenizer alone, or both."""
        return ModelConfig(
            self.tokenizer, self.transformer if self.stage == "transformer" else None
        )

    @property
    def left_to_data(self) -> list[str]:
        """Those of `SIZES_OF_DATA` that are still 0."""
        sizes = (
            self.tokenizer.in_channels,
            self.transformer.num_classes if self.transformer else 1,
        )
        return [key for key, size in zip(SIZES_OF_DATA, sizes, strict=True) if size == 0]

    def with_sizes(self, channels: int, classes: int) -> "TrainConfig":
        """This run with sizes of its data in place of those that are left to the data (0)."""
        tokenizer, transformer = self.tokenizer, self.transformer
        if tokenizer.in_channels == 0:
            tokenizer = dataclasses.replace(tokenizer, in_channels=channels)
        if transformer is not None and transformer.num_classes == 0:
            transformer = dataclasses.replace(transformer, num_classes=classes)
        return dataclasses.replace(self, tokenizer=tokenizer, transformer=transformer)

    def with_tokenizer(self, tokenizer: TokenizerConfig) -> "TrainConfig":
        """This run over another tokenizer, whose vocabulary, code width and scales the transformer
        takes."""
        transformer = self.transformer and dataclasses.replace(
            self.transformer, **_shared(tokenizer)
        )
        return dataclasses.replace(self, tokenizer=tokenizer, transformer=transformer)


def _shared(tokenizer: TokenizerConfig) -> dict:
    return {name: getattr(tokenizer, name) for name in ("vocab_size", "z_channels", "scales")}


def default_config() -> config_dict.ConfigDict:
    """Every key with its default, locked: what a config file starts from.

    The transformer's section leaves out what it takes from the tokenizer; its -1 and 0 mean "by
    depth". Channels of images and the number of classes are 0, for those of the data
    (`train.data_sizes`).
    """
    values = plain(TrainConfig())
    values["tokenizer"]["in_channels"] = 0
    values["tokenizer"]["multipliers"] = (
        TokenizerConfig.multipliers
    )  # flags can override a tuple, not a list
    values["keep_steps"] = ()
    config = config_dict.ConfigDict(values)
    fields = {f.name: plain(f.default) for f in dataclasses.fields(TransformerConfig)} | {
        "num_classes": 0
    }
    follows = _shared(TokenizerConfig())
    config.transformer = config_dict.ConfigDict(
        {k: v for k, v in fields.items() if k not in follows}
    )
    return config.lock()


def from_config_dict(config: config_dict.ConfigDict) -> TrainConfig:
    """The checked, frozen run of a ConfigDict.

    Sizes that it leaves to the data are filled in where the name of the data set alone tells them.

    Raises:
      UserError: an unknown key, a value of the wrong kind or out of range.
    """
    mapping = config.to_dict()
    tokenizer = build(TokenizerConfig, mapping.get("tokenizer") or {}, "config.tokenizer")
    transformer = mapping.get("transformer")
    if transformer is not None:
        for name in _shared(tokenizer):
            if name in transformer:
                raise UserError(
                    f"config.transformer.{name} follows config.tokenizer.{name}; set it there"
                )
        mapping["transformer"] = {**transformer, **_shared(tokenizer)}
    run = build(TrainConfig, {**mapping, "tokenizer": tokenizer})
    for key in ("tokenizer_dir", "init_from", "branch_from"):
        require_path(getattr(run, key), key)
    for key in ("data_dir", "source_dir", "tokens_dir"):
        require_path(getattr(run.data, key), f"data.{key}")
    channels, classes = FIXED_SIZES.get(run.data.name, (0, 0))
    return run.with_sizes(channels, classes)
