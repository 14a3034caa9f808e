"""Couplings: an invertible map whose Jacobian is known both ways (Dinh et al. 2017, Real NVP). Knows no prior.

Each layer scales and shifts the second half of the latents by what a small network makes of the first half and of a
context, then all are turned round. Scales are bounded smoothly, so no layer can explode.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.likelihoods import softclip, total

LOG_SCALE = -1.0, 1.0  # of one layer: what several may stretch together stays within what float32 can bear


class Layer(nn.Module):
    """One layer: the first half stays, and says how the second is scaled and shifted."""

    def __init__(self, latent_size: int, hidden: int, context: int) -> None:
        super().__init__()
        self.kept = latent_size - latent_size // 2
        self.inner = nn.Linear(self.kept, hidden)
        self.context = nn.Linear(context, hidden, bias=False) if context else None
        self.outer = nn.Linear(hidden, 2 * (latent_size - self.kept))
        nn.init.zeros_(self.outer.weight)  # so that a fresh layer does nothing
        nn.init.zeros_(self.outer.bias)

    def terms(self, first: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The shift and the log scale of the second half."""
        within = self.inner(first)
        if self.context is not None and context is not None:
            within = within + self.context(context).unsqueeze(1)
        shift, raw = self.outer(torch.relu(within)).to(first.dtype).chunk(2, dim=-1)
        return shift, softclip(raw, *LOG_SCALE)


class Couplings(nn.Module):
    """Noise ε → z by `layers` couplings, and back; ε and z (…, d), or (rows, k, d) with a context (rows, c)."""

    def __init__(self, latent_size: int, layers: int, hidden: int, context: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(latent_size, hidden, context) for _ in range(layers))

    @property
    def each(self) -> list[Layer]:
        """The layers, in the order that noise goes through them."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def forward(self, noise: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z and log |∂z/∂ε|, float64 (…)."""
        z, logs = noise, []
        for layer in self.each:
            first, second = z.tensor_split((layer.kept,), dim=-1)
            shift, log_scale = layer.terms(first, context)
            z = turned(torch.cat((first, second * torch.exp(log_scale) + shift), -1))
            logs.append(log_scale)
        return z, total(torch.cat(logs, -1))

    def back(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ε and log |∂z/∂ε| there, float64 (…)."""
        logs = []
        for layer in reversed(self.each):
            first, second = turned(z).tensor_split((layer.kept,), dim=-1)
            shift, log_scale = layer.terms(first, context)
            z = torch.cat((first, (second - shift) * torch.exp(-log_scale)), -1)
            logs.append(log_scale)
        return z, total(torch.cat(logs, -1))


def turned(z: Tensor) -> Tensor:
    """The latents in the opposite order."""
    return z[..., list(range(z.shape[-1] - 1, -1, -1))]
