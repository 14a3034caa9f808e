"""pythae's models. Imports pythae only when it is called, as whoever has such a model has it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.adapters.parts import Arguments, expect, settled
from training.config import Unusable

# q(z|x) a diagonal normal, p(z) a standard one (VAMP's aside), p(x|z) by the number: what differs is the training.
SAME_DENSITY: Mapping[str, str] = {
    "VAE": "the ELBO",
    "BetaVAE": "β = {beta:g} times the KL",
    "DisentangledBetaVAE": "β = {beta:g} times the KL's distance from a capacity",
    "BetaTCVAE": "a KL in three weighted parts",
    "FactorVAE": "the ELBO less a total correlation",
    "INFOVAE_MMD": "the ELBO with a mean discrepancy",
    "IWAE": "the importance-weighted bound of {number_samples} draws",
    "MIWAE": "averaged importance-weighted bounds",
    "CIWAE": "a mixture of the ELBO and the importance-weighted bound",
    "PIWAE": "importance-weighted bounds",
    "VAMP": "the ELBO, its prior the posteriors of {number_components} pseudo-inputs",
}
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("AE", "RAE_GP", "RAE_L2", "WAE_MMD", "VQVAE", "Adversarial_AE"),
        "it has no posterior q(z|x) with a density, so there is no bound on log p(x); train a VAE on the same networks",
    ),
    **dict.fromkeys(
        ("VAEGAN", "MSSSIM_VAE"),
        "what it reconstructs by is no likelihood: neither a discriminator's features nor a similarity of pictures is "
        "a density of x; train a VAE on the same networks",
    ),
    **dict.fromkeys(
        ("VAE_LinNF", "VAE_IAF", "HVAE", "RHVAE"),
        "its posterior is what a flow makes of a normal, and the normal alone is not what it was trained with; "
        "train a VAE or an IWAE on the same networks",
    ),
    **dict.fromkeys(
        ("SVAE", "PoincareVAE"),
        "its latents lie in a curved space, and an artifact's in a flat one with a standard normal prior",
    ),
}


def pythae(model: Any, *, scale: float | None = None) -> Arguments:
    """A model of pythae as arguments of `training.export`.

    `reconstruction_loss="bce"` is a Bernoulli likelihood, for rows of 0 and 1 alone: export refuses grey ones.
    "mse" says nothing of the scale of the normal that it stands for: export estimates one number a feature on held-out
    rows, unless `scale` says it. pythae's own get_nll takes 1.

    A β or an importance-weighted bound was training's; the score is the ELBO with none of it. A VAMP's pseudo-inputs
    are encoded at export, and its prior is a mixture from then on.
    """
    from pythae import models
    from pythae.models import VAE, BaseAE

    expect(model, BaseAE, "pythae: one of pythae.models")
    kind = type(model).__name__
    if why := REFUSED.get(kind):
        raise Unusable(f"pythae {kind}: {why}")
    expect(model, VAE, "pythae: a VAE")
    if kind not in SAME_DENSITY or type(model) is not getattr(models, kind, None):
        raise Unusable(
            f"pythae {kind}: a class that we don't know may mean another density; if its posterior is a diagonal "
            "normal and its prior a standard one, call training.export with its encoder and decoder"
        )
    wanted = vars(model.model_config)
    trained = SAME_DENSITY[kind].format(**wanted)
    arguments = Arguments(
        encoder=Encoder(settled(model.encoder)).eval(),
        decoder=Decoder(settled(model.decoder)).eval(),
        encoder_gives="log_variance",
        decoder_gives="probabilities",
        likelihood="bernoulli",
        description=f"pythae {kind}, trained for {trained}",
    )
    if kind == "VAMP":
        arguments["prior"] = {"kind": "vamp", "rows": _pseudo_inputs(model)}
    if wanted["reconstruction_loss"] == "bce":
        if scale is not None:
            raise Unusable("pythae: a model trained with reconstruction_loss='bce' has no scale; leave it out")
        return arguments
    arguments["decoder_gives"], arguments["likelihood"] = "mean", "normal"
    if scale is not None:
        arguments["scale"] = scale
    return arguments


def _pseudo_inputs(model: Any) -> Tensor:
    """What a VAMP's network makes of one input a component, (components, *input_dim)."""
    rows: Tensor = settled(model.pseudo_inputs)(torch.eye(model.number_components))
    return rows.reshape(-1, *model.model_config.input_dim)


class Encoder(nn.Module):
    """x → mean and log variance."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each latent, (n, d)."""
        output = self.wrapped(x)
        return output.embedding, output.log_covariance


class Decoder(nn.Module):
    """z → the reconstruction."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, z: Tensor) -> Tensor:
        """P(1) of each number of x, or its mean, (n, *event)."""
        reconstruction: Tensor = self.wrapped(z).reconstruction
        return reconstruction
