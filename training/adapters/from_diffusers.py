"""diffusers' AutoencoderKL. Imports diffusers only when it is called, as whoever has such a model has it too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.adapters.parts import Arguments, expect, settled

MIDDLE = 127.5  # of 256 levels: pixels 0…255 become −1…1, as the model knows them


def diffusers(vae: Any, *, levels: bool = False, scaled: bool = True) -> Arguments:
    """An AutoencoderKL as arguments of `training.export`. Tiling and slicing are off.

    levels: rows are uint8 pixels 0…255, (channels, height, width), with a mass by the discretised logistic; otherwise
    they are floats −1…1 with a normal density. Export estimates the scale on held-out rows either way, for the model
    has none.

    scaled: latents are those that a diffusion pipeline works with, of about unit variance, and the prior is a standard
    normal there. False: as the autoencoder gives them, where its training had (barely) pulled them to one.
    """
    from diffusers import AutoencoderKL

    expect(vae, AutoencoderKL, "diffusers: an AutoencoderKL")
    model = _plain(settled(vae))
    shift, factor = _scaling(vae.config) if scaled else (torch.zeros(1), torch.ones(1))
    arguments = Arguments(
        encoder=Encoder(model, shift, factor).eval(),
        decoder=Decoder(model, shift, factor).eval(),
        encoder_gives="log_variance",
        decoder_gives="mean",
        likelihood="discretised_logistic" if levels else "normal",
        description=f"diffusers AutoencoderKL, its latents {'scaled as in a pipeline' if scaled else 'not scaled'}",
    )
    if levels:
        arguments["preprocessing"] = {"shift": MIDDLE, "scale": MIDDLE}
    return arguments


def _plain(model: Any) -> Any:
    """The same functions without what a graph can't have, or what makes a row depend on its size or its batch."""
    from diffusers.models.upsampling import Upsample2D

    model.use_tiling = model.use_slicing = False
    model.set_attn_processor(Attention())  # the fused one has a dropout in it, if one that drops nothing
    for block in model.decoder.up_blocks:
        for place, part in enumerate(block.upsamplers or ()):
            if type(part) is Upsample2D and part.norm is None and not part.use_conv_transpose and part.name == "conv":
                block.upsamplers[place] = Doubled(part.conv)
    return model


def _scaling(config: Any) -> tuple[Tensor, Tensor]:
    """shift and factor of each channel: pipelines work with (z − shift)·factor."""
    if config.latents_mean is not None and config.latents_std is not None:
        return torch.tensor(config.latents_mean), config.scaling_factor / torch.tensor(config.latents_std)
    return torch.tensor([config.shift_factor or 0.0]), torch.tensor([float(config.scaling_factor)])


class Attention:
    """Self-attention between the pixels of a row, as diffusers' AttnProcessor has it. A class, as diffusers asks."""

    def __call__(
        self,
        of: Any,
        x: Tensor,
        encoder_hidden_states: None = None,  # noqa: ARG002  diffusers' signature; an autoencoder has none of these
        attention_mask: None = None,  # noqa: ARG002
        temb: None = None,  # noqa: ARG002
    ) -> Tensor:
        """x: (n, channels, height, width)."""
        pixels = of.group_norm(x.flatten(2)).transpose(1, 2)
        query, key, value = (of.head_to_batch_dim(to(pixels)) for to in (of.to_q, of.to_k, of.to_v))
        weights = torch.softmax(query @ key.transpose(-1, -2) * of.scale, dim=-1)
        found = of.to_out[0](of.batch_to_head_dim(weights @ value)).transpose(1, 2).reshape(x.shape)
        added: Tensor = (found + x if of.residual_connection else found) / of.rescale_output_factor
        return added


class Doubled(nn.Module):
    """Twice as high and wide, then a convolution: diffusers' Upsample2D, which branches on how many rows there are."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """(n, channels, height, width) → (n, channels, 2·height, 2·width)."""
        larger: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


class Scaled(nn.Module):
    """An autoencoder and the scale of its latents."""

    shift: Tensor
    factor: Tensor
    widening: Tensor

    def __init__(self, model: nn.Module, shift: Tensor, factor: Tensor) -> None:
        """shift, factor: one a channel, or one for all."""
        super().__init__()
        self.model = model
        self.register_buffer("shift", shift.float().reshape(-1, 1, 1))
        self.register_buffer("factor", factor.float().reshape(-1, 1, 1))
        self.register_buffer("widening", 2.0 * torch.log(self.factor.abs()))  # of a log variance


class Encoder(Scaled):
    """Pixels −1…1 → mean and log variance of the scaled latents."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels, height, width) each."""
        q = self.model.encode(x).latent_dist  # type: ignore[operator]  # diffusers' method
        return (q.mean - self.shift) * self.factor, q.logvar + self.widening


class Decoder(Scaled):
    """Scaled latents → the mean of pixels −1…1."""

    def forward(self, z: Tensor) -> Tensor:
        """z: (n, channels, height, width)."""
        mean: Tensor = self.model.decode(z / self.factor + self.shift).sample  # type: ignore[operator]  # the same
        return mean
