"""`studies.generation_growth`: costs of generation by resolution, and the page that has them."""

from pathlib import Path

import pytest

from var_jax.config.scales import Scales
from var_jax.models import flops
from var_jax.studies import generation_growth as growth

PAGE = Path(__file__).parents[2] / "docs" / "results" / "generation_cost.md"


def test_tables_are_those_of_the_page():
    """The page has what the command prints: counts that change in the code change there."""
    assert growth.tables() in PAGE.read_text()


def test_next_token_uncached_is_the_sum_over_prefixes():
    """The closed sums equal passes over all prefixes of 16 tokens, less what a pass need not
    repeat: logits of earlier tokens, and AdaLN's modulations."""
    prefixes = [growth._config("next_token", Scales(((1, i),))) for i in range(1, 17)]
    last = prefixes[-1]
    total = sum(map(flops.forward_flops, prefixes)) - 15 * flops.adaln_flops(last)
    repeated_logits = sum(range(1, 17)) - 16
    total -= 2 * repeated_logits * last.vocab_size * last.width
    assert growth.next_token_uncached(4).flops == pytest.approx(total, rel=1e-12)


def test_next_scale_uncached_costs_more_than_cached_by_what_it_recomputes():
    """At 32 tokens per side, the uncached cost less the blocks' work on repeated tokens and pairs
    is the cached cost, but for AdaLN before the head and inputs, 1 % of it."""
    cached, uncached = growth.next_scale(32), growth.next_scale_uncached(32)
    config = growth._config("next_scale", growth.scales(32))
    a_token = 2 * config.depth * (4 * config.width**2 + 2 * config.width * config.hidden)
    repeated = sum(config.scales.offsets[1:]) - config.scales.total
    more = repeated * a_token + uncached.attention - cached.attention
    assert uncached.flops - more == pytest.approx(cached.flops, rel=1e-2)


@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_scales_end_at_the_side_that_they_are_for(side):
    """The published lists and their continuation end at the finest map of the image."""
    assert growth.scales(side).finest == (side, side)


def test_exponent_of_attention_is_the_paper_s_where_nothing_is_cached():
    """Attention of next-token prediction that recomputes all tokens grows as the sixth power of
    the side, and that of next-scale prediction as the fourth (VAR, section 3)."""
    for method, power in ((growth.next_token_uncached, 6), (growth.next_scale_uncached, 4)):
        costs = [method(side).attention for side in (64, 128)]
        assert growth.exponent(costs) == pytest.approx(power, abs=0.06)
