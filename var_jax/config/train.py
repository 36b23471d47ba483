"""The config of a training run: a frozen dataclass, and a locked ConfigDict for config files."""

import dataclasses
from typing import TYPE_CHECKING, Any

from var_jax.config import key_patterns, order_file
from var_jax.config.adapter_config import AdapterConfig
from var_jax.config.alignment_config import AlignmentConfig
from var_jax.config.model import (
    TokenizerConfig,
    TransformerConfig,
    require_codes,
    with_pixel_channels,
)
from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.sections import (
    DataConfig,
    DiscriminatorOptimizerConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
)
from var_jax.config.strict import build, plain, require
from var_jax.config.tokenizer_training import AdversarialConfig, CodebookConfig, ProgressiveConfig
from var_jax.config.transformer_config import OF_TOKENIZER
from var_jax.errors import UserError, require_path

if TYPE_CHECKING:  # which only config files need, and a run that is built in code does not
    from ml_collections import config_dict

# Values of `stage`. `objectives.registry` maps them to objectives, and may add further ones.
STAGES = ["tokenizer", "transformer", "adapter", "refiner"]
ON_A_BASE = ("adapter", "refiner")  # stages whose section of the same name has the key `base`
# Keys that 0 leaves to the data, and the values (channels, classes) of data sets that are the same
# everywhere.
SIZES_OF_DATA = ("tokenizer.in_channels", "transformer.num_classes")
CODEBOOK = "quantize/codebook"  # the path of a tokenizer's codes among its parameters
FIXED_SIZES = {"digits": (1, 10), "fashion_mnist_idx": (1, 10)}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A frozen dataclass of all settings of a training run of one stage.

    Attributes:
      stage: which of the two models is trained, or an adapter or logit refiner of a whole model.
      seed: seed of initialization, data order and dropout.
      steps: length of the run; steps * batch_size / images is the number of passes over the
        training images.
      batch_size: images per step over all devices.
      microbatches: number of parts in which a batch is computed; their gradients are averaged.
      log_every: steps between two records of the training loss; the last step has one too.
      eval_every: steps between two evaluations on held-out images; the last step has one too.
      checkpoint_every: steps between two checkpoints; the last step has one too.
      keep_checkpoints: number of newest checkpoints that are kept.
      eval_images: held-out images that an evaluation takes at most; 0 for all.
      sample_classes: columns of the sample grid, one class each.
      wandb_project: project of Weights & Biases that metrics and pictures are logged to, beside
        TensorBoard (extra [wandb]; WANDB_MODE=offline for a file in the workdir); "" for none.
      ema: decay of the averaged weights used for evaluation and sampling; 0 for none.
      ema_warmup: how slowly the average settles: its decay is at most (n + 1) / (n + 10) after n of
        these numbers of steps.
      tokenizer_dir: model directory, or address hf://OWNER/NAME, of the tokenizer whose tokens the
        transformer learns; its sizes replace the `tokenizer` section.
      init_from: model directory, or address hf://OWNER/NAME, whose weights the run starts from; a
        class embedding of another class count starts afresh, and embeddings of other scales are
        resized.
      branch_from: workdir of another run of the same model and optimizer, whose whole state
        (optimizer and average too) this run starts from; it goes on to `steps`.
      branch_step: step of that state.
      keep_steps: steps whose checkpoints are never deleted, such as those that other runs branch
        from.
      trainable: the parameters that are trained, as patterns between commas: "decoder" is a part
        with all that is in it, and "*" in "blocks/*/bias" stands for anything. All others keep the
        values that they start with; FLOPs and MFU count them as trained. "" trains all.
    """

    stage: str = "tokenizer"
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
    wandb_project: str = ""
    ema: float = 0.0
    ema_warmup: int = 1
    tokenizer_dir: str = ""
    init_from: str = ""
    branch_from: str = ""
    branch_step: int = 0
    keep_steps: tuple[int, ...] = ()
    trainable: str = ""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    transformer: TransformerConfig | None = None
    adapter: AdapterConfig = AdapterConfig()
    refiner: RefinerConfig = RefinerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    discriminator_optimizer: DiscriminatorOptimizerConfig = DiscriminatorOptimizerConfig()
    codebook: CodebookConfig = CodebookConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        choices = " or ".join(map(repr, STAGES))
        require(self.stage in STAGES, "config.stage", repr(self.stage), choices)
        require(
            self.stage != "transformer" or self.transformer is not None,
            "transformer",
            None,
            "a section of keys in the transformer's stage",
        )
        if self.transformer is not None:
            followed = with_pixel_channels(self.transformer, self.tokenizer)
            object.__setattr__(self, "transformer", followed)
            if self.stage == "transformer":
                require_codes(self.tokenizer, self.transformer)
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
            self.alignment.check(
                self.tokenizer,
                self.trainable,
                microbatches=self.microbatches,
                start=self.init_from or self.branch_from,
            )
            self._check_codebook()

    def _check_codebook(self):
        """Raises UserError for settings of a codebook where the tokenizer has none."""
        health, codes = self.codebook, self.tokenizer.codes
        require(
            self.tokenizer.codebook_parameters > 0
            or (health.init == "normal" and not health.revive_threshold),
            "codebook.init and revive_threshold",
            (health.init, health.revive_threshold),
            f"'normal' and 0 with tokenizer.codes {codes!r}, which have no codebook",
        )
        require(
            not health.revive_threshold or key_patterns.matches(self.trainable, CODEBOOK),
            "codebook.revive_threshold",
            health.revive_threshold,
            f"0 while trainable {self.trainable!r} leaves {CODEBOOK} as it is",
        )
        require(
            self.tokenizer.quantizes or not health.entropy,
            "codebook.entropy",
            health.entropy,
            f"0 with tokenizer.codes {codes!r}, which makes no choice of codes",
        )

    def steps_of(self, value: float) -> int:
        """Returns the number of steps of a value; values below 1 are shares of the run's steps."""
        return round(value * self.steps) if value < 1 else round(value)

    @property
    def left_to_data(self) -> list[str]:
        """Those of `SIZES_OF_DATA` that are still 0."""
        sizes = (
            self.tokenizer.in_channels,
            self.transformer.num_classes if self.transformer else 1,
        )
        return [key for key, size in zip(SIZES_OF_DATA, sizes, strict=True) if size == 0]

    def with_sizes(self, channels: int, classes: int) -> "TrainConfig":
        """Returns this run with the sizes of its data in place of sizes that are 0."""
        tokenizer, transformer = self.tokenizer, self.transformer
        if tokenizer.in_channels == 0:
            tokenizer = dataclasses.replace(tokenizer, in_channels=channels)
        if transformer is not None and transformer.num_classes == 0:
            transformer = dataclasses.replace(transformer, num_classes=classes)
        return dataclasses.replace(self, tokenizer=tokenizer, transformer=transformer)

    def with_tokenizer(self, tokenizer: TokenizerConfig) -> "TrainConfig":
        """Returns this run with another tokenizer.

        The transformer takes over its vocabulary, code width and scales.
        """
        transformer = self.transformer and dataclasses.replace(
            self.transformer, **_shared(tokenizer)
        )
        return dataclasses.replace(self, tokenizer=tokenizer, transformer=transformer)


def _shared(tokenizer: TokenizerConfig) -> dict:
    return {name: getattr(tokenizer, name) for name in ("vocab_size", "z_channels", "scales")}


def default_config() -> "config_dict.ConfigDict":
    """Returns a locked ConfigDict of every key with its default, which config files start from.

    The transformer's section leaves out the keys that follow the tokenizer; its -1 and 0 mean "by
    depth". Channels of images and the number of classes are 0, for those of the data
    (`train.data_sizes`).
    """
    from ml_collections import config_dict

    values = _with_tuples(plain(TrainConfig()))
    values["tokenizer"]["in_channels"] = 0
    config = config_dict.ConfigDict(values)
    fields = {f.name: plain(f.default) for f in dataclasses.fields(TransformerConfig)}
    fields = _with_tuples(fields) | {"num_classes": 0}
    config.transformer = config_dict.ConfigDict(
        {k: v for k, v in fields.items() if k not in OF_TOKENIZER}
    )
    return config.lock()


def _with_tuples(value: Any) -> Any:
    """Returns nested values with tuples in place of lists, as flags can override tuples alone."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def from_config_dict(config: "config_dict.ConfigDict") -> TrainConfig:
    """Returns the checked, frozen config of the run that a ConfigDict describes.

    Sizes that it leaves to the data are filled in for data sets whose sizes are fixed
    (`FIXED_SIZES`).

    Raises:
      UserError: an unknown key, a value of the wrong kind or out of range.
    """
    mapping = config.to_dict()
    tokenizer = build(TokenizerConfig, mapping.get("tokenizer") or {}, "config.tokenizer")
    transformer = mapping.get("transformer")
    if transformer is not None:
        for name in OF_TOKENIZER:
            if name in transformer:
                raise UserError(
                    f"config.transformer.{name} follows config.tokenizer.{name}; set it there"
                )
        mapping["transformer"] = {**transformer, **_shared(tokenizer)}
        if isinstance(transformer.get("order"), str):
            mapping["transformer"]["order"] = order_file.resolve(transformer["order"])
    run = build(TrainConfig, {**mapping, "tokenizer": tokenizer})
    for key in ("tokenizer_dir", "init_from"):
        require_path(getattr(run, key), key, on_hub=True)
    require_path(run.branch_from, "branch_from")
    for stage in ON_A_BASE:
        require_path(getattr(run, stage).base, f"{stage}.base")
    require_path(run.alignment.tokens, "alignment.tokens")
    for key in ("data_dir", "source_dir", "tokens_dir"):
        require_path(getattr(run.data, key), f"data.{key}")
    channels, classes = FIXED_SIZES.get(run.data.name, (0, 0))
    return run.with_sizes(channels, classes)
