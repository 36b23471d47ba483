"""What grows how with resolution: FLOPs, passes and cache of generation, by arithmetic alone.

  python -m var_jax.studies.generation_growth

prints the tables of docs/results/generation_cost.md. The paper states that next-token prediction of
n x n tokens takes n^2 steps and O(n^6) operations, and next-scale prediction O(log n) steps and
O(n^4) (VAR, section 3). It counts attention, recomputed in every step of next-token prediction. The
tables are of whole models of depth 16, with and without a cache of keys and values, by
`models.flops`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from var_jax.config.model import TransformerConfig
from var_jax.config.scales import SCALES_256, SCALES_512, Scales
from var_jax.models import flops
from var_jax.ops import masks

DEPTH, CLASSES = 16, 1000
PIXELS = (256, 512, 1024, 2048)
PIXELS_PER_TOKEN = 16  # along a side
STRIDE = math.sqrt(2)  # ratio of neighboring scales beyond the published lists
MASKED_PASSES = 8  # of MaskGIT at 256 pixels
EVALUATIONS = 250  # of DiT
CACHE_BYTES = 2  # of a number in bfloat16
GIGA = 1e9


class Cost(NamedTuple):
    """What an image costs, without guidance, which doubles FLOPs and cache.

    Attributes:
      flops: all of the transformer's.
      attention: those of them that are products of queries, keys and values.
      passes: one after the other.
      cached_tokens: tokens whose keys and values are kept.
    """

    flops: float
    attention: float
    passes: int
    cached_tokens: int = 0


def scales(side: int) -> Scales:
    """Returns the token maps of an image whose finest map has `side` tokens along a side.

    They are the published ones for 16 and 32. Beyond, the list for 32 goes on by factors of
    `STRIDE`, rounded, so that a doubling of the side adds two maps.
    """
    if side == Scales.parse(SCALES_256).finest[0]:
        return Scales.parse(SCALES_256)
    published = [height for height, _ in Scales.parse(SCALES_512).sizes]
    more = []
    for step in itertools.count(1):
        size = round(published[-1] * STRIDE**step)
        if size > side:
            return Scales.parse([*published, *more])
        more.append(size)
    raise AssertionError


def next_scale(side: int) -> Cost:
    """Returns the cost of next-scale prediction with cached keys and values."""
    config = _config("next_scale", scales(side))
    total = flops.generation_flops(config, guided=False)
    pairs = masks.attended_pairs(config.sequence, config.mask)
    return Cost(total, _attention(config, pairs), len(config.scales), config.scales.total)


def next_scale_uncached(side: int) -> Cost:
    """Returns the cost of next-scale prediction that recomputes all coarser scales at each."""
    sizes = scales(side).sizes
    configs = [_config("next_scale", Scales(sizes[: k + 1])) for k in range(len(sizes))]
    pairs = sum(masks.attended_pairs(config.sequence, config.mask) for config in configs)
    # Logits are needed of the newest scale alone, and AdaLN's modulations once.
    last = configs[-1]
    spared = sum(config.scales.total for config in configs) - last.scales.total
    total = sum(map(flops.forward_flops, configs)) - 2 * spared * last.vocab_size * last.width
    total -= (len(configs) - 1) * flops.adaln_flops(last)
    return Cost(total, _attention(last, pairs), len(configs))


def next_token(side: int) -> Cost:
    """Returns the cost of next-token prediction with cached keys and values."""
    config = _config("next_token", Scales(((side, side),)))
    tokens = config.scales.total
    total = flops.generation_flops(config, guided=False)
    return Cost(total, _attention(config, tokens * (tokens + 1) // 2), tokens, tokens)


def next_token_uncached(side: int) -> Cost:
    """Returns the cost of next-token prediction that recomputes all earlier tokens for each."""
    config = _config("next_token", Scales(((side, side),)))
    n = config.scales.total
    once = next_token(side)
    # The sums over i = 1 to n of i, and of the i (i + 1) / 2 pairs of i tokens.
    recomputed, pairs = n * (n + 1) // 2, n * (n + 1) * (n + 2) // 6
    attention = _attention(config, pairs)
    a_token = 2 * config.depth * (4 * config.width**2 + 2 * config.width * config.hidden)
    rest = once.flops - once.attention + (recomputed - n) * a_token
    return Cost(rest + attention, attention, n)


def masked(side: int) -> Cost:
    """Returns the cost of masked prediction in `MASKED_PASSES` passes over all tokens."""
    config = _config("masked", Scales(((side, side),)))
    total = flops.generation_flops(config, guided=False, evaluations=MASKED_PASSES)
    pairs = MASKED_PASSES * config.scales.total**2
    return Cost(total, _attention(config, pairs), MASKED_PASSES)


def diffusion(side: int) -> Cost:
    """Returns the cost of `EVALUATIONS` evaluations of a diffusion model over 2x2 patches."""
    config = _config("diffusion", Scales(((2 * side, 2 * side),)), patch=2, z_channels=4)
    total = flops.generation_flops(config, guided=False, evaluations=EVALUATIONS)
    pairs = EVALUATIONS * config.sequence.total**2
    return Cost(total, _attention(config, pairs), EVALUATIONS)


METHODS: dict[str, Callable[[int], Cost]] = {
    "next scale": next_scale,
    "next scale, no cache": next_scale_uncached,
    "next token": next_token,
    "next token, no cache": next_token_uncached,
    f"masked, {MASKED_PASSES} passes": masked,
    f"diffusion, {EVALUATIONS} evaluations": diffusion,
}


def _config(objective: str, sizes: Scales, **changes) -> TransformerConfig:
    return TransformerConfig(
        depth=DEPTH, num_classes=CLASSES, objective=objective, scales=sizes, **changes
    )


def _attention(config: TransformerConfig, pairs: int) -> float:
    return 4.0 * config.depth * config.width * pairs


def exponent(values: Sequence[float]) -> float:
    """Returns the power of the side with which the last of two values grows from the one before.

    The side doubles between them.
    """
    return math.log2(values[-1] / values[-2])


def tables() -> str:
    """Returns the tables as Markdown."""
    sides = [pixels // PIXELS_PER_TOKEN for pixels in PIXELS]
    costs = {name: [cost(side) for side in sides] for name, cost in METHODS.items()}
    head = " | ".join(f"{pixels} px" for pixels in PIXELS)
    rule = "|---" * (len(PIXELS) + 1)
    width = _config("masked", Scales(((1, 1),))).width
    number_bytes = 2 * DEPTH * width * CACHE_BYTES
    lines = [
        "FLOPs per image in billions, the transformer's, without guidance:",
        "",
        f"| method | {head} | exponent | of attention alone | attention's share |",
        f"{rule}|---|---|---|",
    ]
    for name, by_size in costs.items():
        cells = [f"{cost.flops / GIGA:,.0f}" for cost in by_size]
        cells.append(f"{exponent([cost.flops for cost in by_size]):.2f}")
        cells.append(f"{exponent([cost.attention for cost in by_size]):.2f}")
        cells.append(f"{by_size[-1].attention / by_size[-1].flops:.0%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Sequential passes per image:", "", f"| method | {head} |", f"{rule}|"]
    for name, by_size in costs.items():
        lines.append(f"| {name} | {' | '.join(f'{cost.passes:,}' for cost in by_size)} |")
    lines += [
        *("", "Cached keys and values per image, in MB of bfloat16:", ""),
        *(f"| method | {head} | exponent |", f"{rule}|---|"),
    ]
    for name, by_size in costs.items():
        if by_size[-1].cached_tokens:
            stored = [cost.cached_tokens * number_bytes for cost in by_size]
            cells = [f"{size / 1e6:,.0f}" for size in stored]
            lines.append(f"| {name} | {' | '.join(cells)} | {exponent(stored):.2f} |")
    maps = "; ".join(f"{p} px: {scales(side)}" for p, side in zip(PIXELS, sides, strict=True))
    return "\n".join([*lines, "", f"Token maps of next-scale prediction by side: {maps}."])


if __name__ == "__main__":
    print(tables())
