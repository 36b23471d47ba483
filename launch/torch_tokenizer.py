"""The tokenizer in plain PyTorch, with the published mathematics and weights.

As `launch/torch_transformer.py`; sizes come from this project's `TokenizerConfig`, with Euclidean
codes.
"""

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-6


class Tokenizer(nn.Module):
    """Images (b, c, H, W) in [-1, 1] to tokens of all scales and back.

    Args:
      config: a `TokenizerConfig` with Euclidean codes, computed in float32.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Quantizer(config)
        z = config.z_channels
        self.quant_conv, self.post_quant_conv = conv(z, z), conv(z, z)

    def features(self, images):
        return self.quant_conv(self.encoder(images))

    def encode(self, images):
        """Returns the tokens (b, L) of all scales, coarse to fine."""
        return self.quantize.tokens(self.features(images))

    def decode_feature(self, feature):
        """Returns the images of quantized feature maps, in [-1, 1]."""
        return self.decoder(self.post_quant_conv(feature)).clamp(-1, 1)

    def decode(self, tokens):
        """Returns the images (b, c, H, W) of tokens of all scales, in [-1, 1]."""
        return self.decode_feature(self.quantize.feature_maps(tokens)[-1])

    def teacher_input(self, tokens):
        """Returns the transformer's input (b, L - 1, c) for all scales but the first."""
        maps = self.quantize.feature_maps(tokens)[:-1]
        inputs = [self.quantize.next_input(f_hat, k + 1) for k, f_hat in enumerate(maps)]
        return torch.cat(inputs, dim=1)


class Quantizer(nn.Module):
    """The codebook and the residual convolutions, scale by scale."""

    def __init__(self, config):
        super().__init__()
        self.config, self.scales = config, config.scales
        z, count = config.z_channels, len(config.scales)
        self.embedding = nn.Embedding(config.vocab_size, z)
        convs = [conv(z, z) for _ in range(config.phi_count)]
        self.quant_resi = Shared(convs[0]) if config.phi == 1 else PartlyShared(convs, count)

    def scale_map(self, codes, k: int):
        """Returns what the code vectors (b, l, c) of scale k add to the feature map."""
        codes = codes.transpose(1, 2).reshape(len(codes), -1, *self.scales.sizes[k])
        if k < len(self.scales) - 1:
            codes = F.interpolate(codes, size=self.scales.finest, mode="bicubic")
        ratio = self.config.phi_ratio
        return codes * (1 - ratio) + self.quant_resi(k)(codes) * ratio

    def next_input(self, f_hat, k: int):
        """Returns a feature map area-averaged to scale k, as a sequence (b, l, c)."""
        return F.interpolate(f_hat, size=self.scales.sizes[k], mode="area").flatten(2).mT

    def tokens(self, feature):
        rest, scale_tokens = feature.detach().clone(), []
        book = self.embedding.weight
        for k in range(len(self.scales)):
            z = self.next_input(rest, k).reshape(-1, book.shape[1])
            distance = z.square().sum(1, keepdim=True) + book.square().sum(1)
            distance.addmm_(z, book.T, alpha=-2, beta=1)
            scale_tokens.append(distance.argmin(dim=1).view(len(feature), -1))
            rest = rest - self.scale_map(self.embedding(scale_tokens[-1]), k)
        return torch.cat(scale_tokens, dim=1)

    def feature_maps(self, tokens):
        """Returns the accumulated feature map after each scale."""
        total, maps = 0, []
        for k in range(len(self.scales)):
            total = total + self.scale_map(self.embedding(tokens[:, self.scales.span(k)]), k)
            maps.append(total)
        return maps


class Shared(nn.Module):
    """One residual convolution for all scales."""

    def __init__(self, module):
        super().__init__()
        self.qresi = module

    def forward(self, k: int):
        return self.qresi


class PartlyShared(nn.Module):
    """Residual convolutions, each for the scales that are nearest to it."""

    def __init__(self, modules, num_scales: int):
        super().__init__()
        from var_jax.ops.vq import phi_index

        self.qresi_ls = nn.ModuleList(modules)
        self.index = phi_index(num_scales, len(modules))

    def forward(self, k: int):
        return self.qresi_ls[self.index[k]]


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int | None = None):
    padding = size // 2 if padding is None else padding
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding)


def group_norm(config, channels: int) -> nn.Module:
    return nn.GroupNorm(config.norm_groups, channels, eps=EPS)


class ResBlock(nn.Module):
    def __init__(self, config, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(config, inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = group_norm(config, outputs), conv(outputs, outputs)
        same = inputs == outputs
        self.nin_shortcut = nn.Identity() if same else conv(inputs, outputs, size=1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class SelfAttention(nn.Module):
    """Single-head attention over all positions of the map."""

    def __init__(self, config, channels: int):
        super().__init__()
        self.norm = group_norm(config, channels)
        self.qkv, self.proj_out = conv(channels, 3 * channels, 1), conv(channels, channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = (torch.bmm(q.mT, k) * x.shape[1] ** -0.5).softmax(dim=-1)
        return x + self.proj_out(torch.bmm(v, weights.mT).view_as(x))


class Middle(nn.Module):
    def __init__(self, config, channels: int):
        super().__init__()
        self.block_1 = ResBlock(config, channels, channels)
        self.attn_1 = SelfAttention(config, channels) if config.mid_attention else nn.Identity()
        self.block_2 = ResBlock(config, channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The residual blocks of one resolution, at the lowest each with attention after it."""

    def __init__(self, config, inputs: int, outputs: int, blocks: int, *, lowest: bool):
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResBlock(config, a, outputs) for a in widths[:-1])
        attentions = blocks if lowest and config.attention else 0
        self.attn = nn.ModuleList(SelfAttention(config, outputs) for _ in range(attentions))

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Downsample(nn.Module):
    """Half the resolution, padded at the right and the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, stride=2, padding=0)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        last, previous = len(config.widths) - 1, config.channels
        self.conv_in = conv(config.in_channels, config.channels)
        self.down = nn.ModuleList()
        for i, width in enumerate(config.widths):
            level = Level(config, previous, width, config.blocks, lowest=i == last)
            level.downsample = Downsample(width) if i < last else nn.Identity()
            self.down.append(level)
            previous = width
        self.mid = Middle(config, previous)
        self.norm_out = group_norm(config, previous)
        self.conv_out = conv(previous, config.z_channels)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level.downsample(level(x))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        last, previous = len(config.widths) - 1, config.widths[-1]
        self.conv_in = conv(config.z_channels, previous)
        self.mid = Middle(config, previous)
        levels = []
        for i, width in reversed(list(enumerate(config.widths))):
            level = Level(config, previous, width, config.blocks + 1, lowest=i == last)
            level.upsample = Upsample(width) if i else nn.Identity()
            levels.insert(0, level)
            previous = width
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(config, previous)
        self.conv_out = conv(previous, config.in_channels)

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level.upsample(level(x))
        return self.conv_out(F.silu(self.norm_out(x)))
