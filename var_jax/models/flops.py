"""FLOP and parameter counts of all models, from their configurations, without JAX or arrays.

One multiply-add is two FLOPs; norms, activations, softmax and biases are left out. Every figure is
per image. Three definitions of training compute are in use and differ in slope against size, so
each has a name here: `train_flops_per_image` (exact), `dense_attention_train_flops` (masked pairs
counted too) and `six_nd_train_flops`.
"""

from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.strict import require_from_data
from var_jax.ops import masks

TIME_CHANNELS = 256  # sines and cosines of the time, which diffusion's first linear takes
HEAD_LINEARS = 2  # linears of the AdaLN before the head, width to width: scale and shift
BACKWARD = 2  # the backward pass costs twice the forward: gradients of inputs and of weights


def forward_flops(config: TransformerConfig, *, attended_pairs: int | None = None) -> float:
    """Returns the FLOPs per image of a teacher-forced forward pass.

    All tokens are computed at once, and AdaLN once per image. Of diffusion, tokens are patches, and
    it is one evaluation.

    Args:
      attended_pairs: (query, key) pairs that attention computes; by default those that the mask
        lets through, of next-token prediction the n (n + 1) / 2 of n tokens, of masked prediction
        all n^2.
    """
    c = config
    pairs = masks.attended_pairs(c.sequence, c.mask) if attended_pairs is None else attended_pairs
    block = 4 * c.width**2 + 2 * c.width * c.hidden
    a_token = c.depth * block + (_output_numbers(c) + _input_channels(c)) * c.width
    once = adaln_flops(c) + 2 * _time_weights(c)
    return float(2 * c.sequence.total * a_token + once + 4 * c.depth * c.width * pairs)


def adaln_flops(config: TransformerConfig) -> float:
    """Returns the FLOPs of one pass of the linears from the class to AdaLN's modulations."""
    return float(2 * adaln_weights(config))


def adaln_weights(config: TransformerConfig) -> int:
    """Returns the number of weights in AdaLN's linears.

    There are six linears per block (or six shared ones), and two before the head; none where the
    class is only the start token.
    """
    if config.class_conditioning == "start_token":
        return 0
    linears = 6 * (1 if config.shared_adaln else config.depth)
    return linears * config.width**2 + head_adaln_weights(config)


def block_adaln_weights(config: TransformerConfig) -> int:
    """Returns the number of weights in AdaLN's linears that are parts of the blocks."""
    shared = config.shared_adaln or config.class_conditioning == "start_token"
    return 0 if shared else 6 * config.depth * config.width**2


def head_adaln_weights(config: TransformerConfig) -> int:
    """Returns the number of weights in the linears of the AdaLN before the head."""
    return 0 if config.class_conditioning == "start_token" else HEAD_LINEARS * config.width**2


def _input_channels(config: TransformerConfig) -> int:
    """Returns how many numbers of a token its embedding multiplies; none where it is looked up."""
    if config.objective == "diffusion":
        return config.patch**2 * config.latent_channels
    return config.z_channels if config.objective == "next_scale" else 0


def _output_numbers(config: TransformerConfig) -> int:
    """Returns how many numbers of a token are predicted: a logit per code, or those of a patch."""
    if config.objective == "diffusion":
        return config.patch**2 * config.output_channels
    return config.vocab_size


def _time_weights(config: TransformerConfig) -> int:
    """Returns the weights of the MLP from the time to the condition, which diffusion has."""
    return (TIME_CHANNELS + config.width) * config.width if config.objective == "diffusion" else 0


def train_flops_per_image(config: TransformerConfig) -> float:
    """Returns the exact training FLOPs per image, forward and backward, without masked pairs.

    3 [2 L (12 d w^2 + V w + C w) + 2 (6 d w^2 + 2 w^2) + 4 d w M] at the published MLP ratio of 4,
    with depth d, width w, L tokens, V codes, C code channels and M attended pairs (`ops.masks`).
    Recomputation (`remat`) does not count.
    """
    return (1 + BACKWARD) * forward_flops(config)


def dense_attention_train_flops(config: TransformerConfig) -> float:
    """Returns the training FLOPs per image with all L^2 pairs counted, masked ones too.

    An implementation that masks after the product computes this many.
    """
    return (1 + BACKWARD) * forward_flops(config, attended_pairs=config.sequence.total**2)


def six_nd_train_flops(config: TransformerConfig) -> float:
    """Returns 6 N D with N the parameters of the blocks and D the image's L tokens.

    It counts AdaLN's weights once per token although they act once per image: 1.13 (depth 6) to
    1.44 (depth 30) of the exact figure, which tilts exponents against compute.
    """
    return 6.0 * param_count(config)["body"] * config.sequence.total


def param_count(config: TransformerConfig) -> dict[str, int]:
    """Returns the number of parameters of the transformer.

    Returns:
      "total": every parameter; "body": the blocks' weight matrices, 73728 d^3 at the published
      proportions (49152 d^3 with shared AdaLN, whose one linear is outside the blocks), the size
      that 6ND uses.
    """
    c = config
    require_from_data("transformer.num_classes", c.num_classes)
    w, h = c.width, c.hidden
    adaln = c.class_conditioning == "adaln"
    matrices = 4 * w**2 + 2 * w * h + (6 * w**2 if adaln and not c.shared_adaln else 0)
    # Biases of q, v, the projection, both MLP layers and AdaLN (or its learned offset, or scales
    # and shifts of two LayerNorms); QK-norm's scale of every head.
    vectors = 2 * w + w + h + w + (6 if adaln else 4) * w + (c.heads if c.qk_norm else 0)
    vectors += w if c.key_bias else 0
    shared = 6 * (w**2 + w) if adaln and c.shared_adaln else 0
    head = 2 * (w**2 + w) if adaln else 2 * w
    ends = _input_parameters(c) + head + (w + 1) * _output_numbers(c)
    return {
        "total": c.depth * (matrices + vectors) + shared + ends,
        "body": c.depth * matrices,
    }


def _input_parameters(config: TransformerConfig) -> int:
    """Returns the number of parameters before the blocks.

    They are the embeddings of classes, positions, tokens and times, and the statistics that latents
    are normalized by.
    """
    c = config
    classes = (c.num_classes + 1) * c.width
    if c.objective == "diffusion":
        time = _time_weights(c) + 2 * c.width
        return classes + time + (_input_channels(c) + 1) * c.width + 2 * c.latent_channels
    if c.objective == "next_scale":
        places = c.scales.lengths[0] + c.scales.total + len(c.scales)
        return classes + (places + c.z_channels + 1) * c.width
    mask_token = 1 if c.objective == "masked" else 0
    return classes + (c.scales.total + c.vocab_size + mask_token) * c.width


def generation_flops(
    config: TransformerConfig, *, guided: bool = True, evaluations: int = 1
) -> float:
    """Returns the transformer's FLOPs for generating one image.

    Images are generated scale by scale, token by token, or in evaluations of all tokens. In the
    first two, attention is cached, so it computes M pairs as in training.

    The blocks' AdaLN acts once, at the first scale, token or evaluation; that of diffusion, which
    depends on the time, acts in every evaluation. The head's acts at every scale; token by token,
    and in masked prediction, it acts once. Classifier-free guidance (`guided`) runs a second,
    unconditional sequence.

    Args:
      evaluations: passes over all tokens, of masked prediction and diffusion
        (`ops.diffusion_solvers.evaluations`).
    """
    sequence = forward_flops(config)
    if config.objective == "next_scale":
        sequence += (len(config.scales) - 1) * 2 * head_adaln_weights(config)
    cached = 0.0 if config.objective == "diffusion" else adaln_flops(config)
    sequence += (evaluations - 1) * (sequence - cached)
    return (2 if guided else 1) * sequence


def refiner_flops(config: RefinerConfig, model: TransformerConfig) -> float:
    """Returns the FLOPs per image of a logit refiner, of teacher forcing or of sampling.

    They come on top of the model's. Attention is causal within a scale, and cached in sampling, so
    that n tokens have n (n + 1) / 2 pairs. Each row of guidance has them.
    """
    c, scales = config.blocks(model), config.scales(model)
    a_token = c.depth * (4 * c.width**2 + 2 * c.width * c.hidden)
    a_token += (model.width + model.vocab_size) * c.width
    pairs = sum(n * (n + 1) // 2 for n in scales.lengths)
    return float(2 * scales.total * a_token + 4 * c.depth * c.width * pairs)


def encode_flops(config: TokenizerConfig) -> float:
    """Returns the FLOPs of encoding one image into tokens.

    They are those of the encoder and of every scale's nearest-code search and residual convolution,
    if there are codes.

    Multiply-adds with padding zeros are not counted, as XLA's cost analysis does not.
    """
    c = config
    require_from_data("tokenizer.in_channels", c.in_channels)
    h, w = c.scales.finest
    sizes = [(h * 2**i, w * 2**i) for i in reversed(range(len(c.widths)))]
    total, previous = _conv(sizes[0], c.in_channels, c.channels), c.channels
    for i, (size, width) in enumerate(zip(sizes, c.widths, strict=True)):
        total += _level(c, size, previous, width, c.blocks, lowest=i == len(sizes) - 1)
        previous = width
        if i < len(sizes) - 1:
            rows, columns = (3 * n - 1 for n in sizes[i + 1])  # padded on one side only
            total += 2 * rows * columns * width * width
    total += (
        _middle(c, previous)
        + _conv((h, w), previous, c.z_channels)
        + _conv((h, w), c.z_channels, c.feature_channels)
    )
    if not c.quantizes:
        return float(total)
    search = 2 * c.scales.total * c.codebook_parameters
    down = sum(_resize((h, w), size, c.z_channels) for size in c.scales.sizes)
    return float(total + search + down + _contributions(c))


def decode_flops(config: TokenizerConfig) -> float:
    """Returns the FLOPs of decoding one image from tokens (see `encode_flops`).

    They are those of every scale's upsampling and residual convolution, and of the decoder. On a
    single CPU the decoder's upsampling takes fewer (`ops.upsampled_convolution`).
    """
    c = config
    h, w = c.scales.finest
    previous = c.widths[-1]
    total = (
        _contributions(c)
        + _conv((h, w), c.z_channels, c.z_channels)
        + _conv((h, w), c.z_channels, previous)
    )
    total += _middle(c, previous)
    for i, width in reversed(list(enumerate(c.widths))):
        scale = 2 ** (len(c.widths) - 1 - i)
        total += _level(
            c, (h * scale, w * scale), previous, width, c.blocks + 1, lowest=i == len(c.widths) - 1
        )
        previous = width
        if i:
            total += _conv((2 * h * scale, 2 * w * scale), width, width)
    return float(total + _conv(c.image_shape[:2], previous, c.in_channels))


def tokenizer_train_flops(config: TokenizerConfig) -> float:
    """Returns the FLOPs per image of the tokenizer's forward and backward passes."""
    return (1 + BACKWARD) * (encode_flops(config) + decode_flops(config))


def _conv(size: tuple[int, int], inputs: int, outputs: int, kernel: int = 3) -> int:
    """Returns the FLOPs of a stride-1 convolution that keeps the size.

    Outputs at the border count only the taps within the map.
    """
    taps = [n * kernel - 2 * (kernel // 2) for n in size]
    return 2 * taps[0] * taps[1] * inputs * outputs


def _res_block(size: tuple[int, int], inputs: int, outputs: int) -> int:
    shortcut = _conv(size, inputs, outputs, 1) if inputs != outputs else 0
    return _conv(size, inputs, outputs) + _conv(size, outputs, outputs) + shortcut


def _attention(size: tuple[int, int], width: int) -> int:
    positions = size[0] * size[1]
    return _conv(size, width, 4 * width, 1) + 4 * positions**2 * width


def _level(
    config: TokenizerConfig,
    size: tuple[int, int],
    inputs: int,
    outputs: int,
    blocks: int,
    *,
    lowest: bool,
) -> int:
    res_blocks = _res_block(size, inputs, outputs) + (blocks - 1) * _res_block(
        size, outputs, outputs
    )
    return res_blocks + (blocks * _attention(size, outputs) if lowest and config.attention else 0)


def _middle(config: TokenizerConfig, width: int) -> int:
    size = config.scales.finest
    return 2 * _res_block(size, width, width) + (
        _attention(size, width) if config.mid_attention else 0
    )


def _contributions(config: TokenizerConfig) -> int:
    """Returns the FLOPs of every scale's bicubic upsampling and residual convolution."""
    if not config.quantizes:
        return 0
    finest, channels = config.scales.finest, config.z_channels
    up = sum(_resize(size, finest, channels) for size in config.scales.sizes)
    return up + len(config.scales) * _conv(finest, channels, channels)


def _resize(source: tuple[int, int], target: tuple[int, int], channels: int) -> int:
    """Returns the FLOPs of a resize by one matrix per side, rows first; 0 where the size stays."""
    if source == target:
        return 0
    return 2 * channels * target[0] * source[1] * (source[0] + target[1])
