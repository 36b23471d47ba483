"""The transformer and sampling in plain PyTorch, with the published mathematics and weights.

`launch/cpu_bench.py` compares the speed of the JAX models with these. They are written as the
published code computes (VAR, sections 3.2 and 3.3): one attention over all scales with an additive
mask in training, keys and values concatenated from scale to scale in sampling, top-k and top-p by
sorting. Weights in the published state dicts load with `load_state_dict`, and
`tests/launch/test_cpu_bench.py` holds the modules to the arrays of the published code.

Sizes come from this project's `TransformerConfig`; only the published variants of it are here.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-6


class Transformer(nn.Module):
    """Logits of every token of a scale from the coarser scales and a class.

    Args:
      config: a `TransformerConfig`, computed in float32 under the block-causal mask.
    """

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        width = c.width
        self.word_embed = nn.Linear(c.z_channels, width)
        self.class_emb = nn.Embedding(c.num_classes + 1, width)
        self.pos_start = nn.Parameter(0.02 * torch.randn(1, c.scales.lengths[0], width))
        self.pos_1LC = nn.Parameter(0.02 * torch.randn(1, c.scales.total, width))
        self.lvl_embed = nn.Embedding(len(c.scales), width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        if c.shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, c.vocab_size)
        levels = torch.from_numpy(c.scales.level_ids).long()
        hidden = torch.zeros(c.scales.total, c.scales.total)
        hidden.masked_fill_(levels[:, None] < levels, -torch.inf)
        self.register_buffer("lvl_1L", levels[None], persistent=False)
        self.register_buffer("attn_bias", hidden[None, None], persistent=False)

    def forward(self, inputs, labels):
        """Returns the logits (b, L, v) of all scales by teacher forcing.

        In training mode class labels and branches are dropped at random.

        Args:
          inputs: the tokenizer's `teacher_input` (b, L - 1, c).
          labels: class ids (b,).
        """
        c = self.config
        if self.training:
            dropped = torch.rand(labels.shape) < c.class_dropout
            labels = torch.where(dropped, c.num_classes, labels)
        cond = self.class_emb(labels)
        x = torch.cat([cond[:, None] + self.pos_start, self.word_embed(inputs)], dim=1)
        x = x + self.lvl_embed(self.lvl_1L) + self.pos_1LC
        block_cond = self._block_condition(cond)
        rates = torch.linspace(0, c.drop_path, c.depth).tolist()
        for block, rate in zip(self.blocks, rates, strict=True):
            x = block(x, block_cond, self.attn_bias, drop_path=rate if self.training else 0.0)
        return self.head(self.head_nm(x, cond))

    def next_scale(self, k: int, inputs, labels, cache: list):
        """Returns the logits of scale k; each block's keys and values are added to `cache`."""
        cond = self.class_emb(labels)
        x = cond[:, None] + self.pos_start if k == 0 else self.word_embed(inputs)
        span = self.config.scales.span(k)
        x = x + self.lvl_embed(self.lvl_1L[:, span]) + self.pos_1LC[:, span]
        block_cond = self._block_condition(cond)
        for i, block in enumerate(self.blocks):
            x = block(x, block_cond, None, cache=cache, index=i)
        return self.head(self.head_nm(x, cond))

    def _block_condition(self, cond):
        if not self.config.shared_adaln:
            return cond
        return self.shared_ada_lin(cond).view(-1, 1, 6, self.config.width)


class Block(nn.Module):
    """Attention and MLP, each normalized and modulated before, and gated after."""

    def __init__(self, config):
        super().__init__()
        width = config.width
        self.shared_adaln = config.shared_adaln
        self.attn = Attention(config)
        self.ffn = FeedForward(width, config.hidden)
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / width**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, cond, bias, *, drop_path=0.0, cache=None, index=0):
        if self.shared_adaln:
            modulations = self.ada_gss + cond
        else:
            modulations = self.ada_lin(cond).view(-1, 1, 6, x.shape[-1])
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulations.unbind(2)
        y = self.attn(self.norm(x) * (scale1 + 1) + shift1, bias, cache, index)
        x = x + dropped_path(y * gamma1, drop_path)
        y = self.ffn(self.norm(x) * (scale2 + 1) + shift2)
        return x + dropped_path(y * gamma2, drop_path)


def dropped_path(branch, rate: float):
    """Returns a branch whose samples are zero with a probability, and scaled up else."""
    if not rate:
        return branch
    keep = torch.empty(len(branch), 1, 1).bernoulli_(1 - rate)
    return branch * (keep / (1 - rate))


class Attention(nn.Module):
    """Multi-head self-attention over the tokens and those in the cache."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.qk_norm, width = config.heads, config.qk_norm, config.width
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width), persistent=False)
        self.scale = 0.25 / (width // self.heads) ** 0.5
        if self.qk_norm:
            self.scale = 1.0
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def forward(self, x, bias, cache, index):
        batch, length, width = x.shape
        qkv_bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, qkv_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:
            factor = self.scale_mul_1H11.clamp_max(math.log(100)).exp()
            q, k = F.normalize(q, dim=-1) * factor, F.normalize(k, dim=-1)
        if cache is not None:
            if len(cache) > index:
                earlier_k, earlier_v = cache[index]
                k, v = torch.cat([earlier_k, k], dim=2), torch.cat([earlier_v, v], dim=2)
                cache[index] = k, v
            else:
                cache.append((k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class HeadNorm(nn.Module):
    """LayerNorm with scale and shift from the class, before the head."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, cond):
        scale, shift = self.ada_lin(cond).view(-1, 1, 2, x.shape[-1]).unbind(2)
        return self.norm(x) * (scale + 1) + shift


@torch.no_grad()
def generate(tokenizer, transformer, labels, *, cfg: float, top_k: int, top_p: float):
    """Returns images (b, c, H, W) in [0, 1] and tokens (b, L), sampled with guidance."""
    scales, none = tokenizer.config.scales, transformer.config.num_classes
    both = torch.cat([labels, torch.full_like(labels, none)])
    cache, sampled, total, inputs = [], [], 0, None
    for k in range(len(scales)):
        logits = transformer.next_scale(k, inputs, both, cache)
        strength = cfg * k / (len(scales) - 1)
        conditional, unconditional = logits.chunk(2)
        logits = (1 + strength) * conditional - strength * unconditional
        sampled.append(sample(logits, top_k, top_p))
        codes = tokenizer.quantize.embedding(sampled[-1])
        total = total + tokenizer.quantize.scale_map(codes, k)
        if k + 1 < len(scales):
            inputs = tokenizer.quantize.next_input(total, k + 1).repeat(2, 1, 1)
    images = tokenizer.decode_feature(total).add(1).mul(0.5)
    return images, torch.cat(sampled, dim=1)


def sample(logits, top_k: int, top_p: float):
    """Returns a token per position, from the top k and of those the top p."""
    if top_k:
        smallest = logits.topk(top_k, largest=True, sorted=False, dim=-1)[0].amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p:
        ascending, order = logits.sort(dim=-1, descending=False)
        removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed[..., -1:] = False
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
    chances = logits.softmax(dim=-1).flatten(0, -2)
    return torch.multinomial(chances, num_samples=1).view(logits.shape[:-1])
