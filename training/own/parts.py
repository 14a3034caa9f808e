"""Parts: somebody's encoder and decoder with what goes in and comes out made plain, and the two as one VAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.config import Unusable
from training.likelihoods import Likelihood, Parameters, aligned
from training.own.given import DecoderGives, EncoderGives
from training.posteriors import DiagonalNormal
from training.vae import VAE

# Families with a location in the units of x: their parameters follow an affine change of units.
LOCATED = ("normal", "student_t", "discretised_logistic")
# Of a decoder that gives one number for each number of x: which parameter that is, and which is the scale beside it.
MEANS = {"bernoulli": "logits", "poisson": "rate", "normal": "loc", "discretised_logistic": "loc"}
SCALED = ("normal", "discretised_logistic")
IN_FLOAT32 = ("bernoulli", "discretised_logistic")  # as the trainer's: these hold 5e-6 so, and are faster


def check_loaded(role: str, module: nn.Module) -> None:
    """Unusable for a module that has the shapes of its weights alone."""
    if any(held.is_meta for held in (*module.parameters(), *module.buffers())):
        raise Unusable(
            f"{role}: lies on torch's meta device, which has shapes and no weights; load them first: "
            "module.to_empty(device='cpu'), then load_state_dict, or load_state_dict(…, assign=True)"
        )


class EncoderPart(nn.Module):
    """u → its two outputs, flat, (n, d) each."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """mean, and what the encoder gives beside it."""
        given = _tensors("encoder", self.own(u), None)
        if len(given) != 2:
            what = "one tensor" if len(given) == 1 else f"{len(given)} tensors"
            raise Unusable(
                f"encoder: gives {what}, and two are needed: the mean, and a log variance (or what encoder_gives says)"
                + ("; of one tensor with both, .chunk(2, 1) makes two" if len(given) == 1 else "")
            )
        mean, spread = given
        if mean.shape != spread.shape or mean.dim() < 2:
            raise Unusable(
                f"encoder: gives {list(mean.shape)} and {list(spread.shape)} for {u.shape[0]} rows; two of one shape "
                "are needed, (rows, latents)"
            )
        return mean.flatten(1), spread.flatten(1)


class DecoderPart(nn.Module):
    """z, (n, d) → the tensors that its family needs, in order, each of its shape for every row."""

    def __init__(self, own: nn.Module, latent_shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """shapes: of each parameter for one row, by name."""
        super().__init__()
        self.own, self.latent_shape = own, latent_shape
        self.names, self.shapes = tuple(shapes), tuple(shapes.values())

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """One tensor a name; what is the same for every row is given to each."""
        given = _tensors("decoder", self.own(z.reshape(z.shape[0], *self.latent_shape)), self.names)
        if len(given) != len(self.names):
            raise Unusable(
                f"decoder: gives {len(given)} tensors, and {len(self.names)} are needed: {', '.join(self.names)}"
            )
        each = zip(self.names, given, self.shapes, strict=True)
        return tuple(_of_rows(name, value, z.shape[0], shape) for name, value, shape in each)


def _of_rows(name: str, value: Tensor, rows: int, shape: tuple[int, ...]) -> Tensor:
    """(rows, *shape), from that, from the same numbers in another shape, or from what is the same for every row."""
    if value.dim() < 2 and value.numel() in (1, torch.Size(shape).numel()):
        whole = value.reshape(shape) if value.numel() > 1 else value.reshape(())
        return whole.expand(rows, *shape)
    if value.shape[1:].numel() != torch.Size(shape).numel():
        raise Unusable(f"decoder: gives {list(value.shape[1:])} for the {name} of a row, and {list(shape)} is needed")
    return value.reshape(rows, *shape)


def _tensors(role: str, given: Any, names: tuple[str, ...] | None) -> tuple[Tensor, ...]:
    """The tensors of what a module returned; a dict's by their names."""
    if isinstance(given, Tensor):
        return (given,)
    if dataclasses.is_dataclass(given) and not isinstance(given, type | Mapping):
        given = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    if isinstance(given, Mapping):
        if names is None or set(given) != set(names):
            wanted = f"a dict of {', '.join(names)}" if names else "a tuple of two tensors"
            raise Unusable(f"{role}: gives a dict of {', '.join(map(str, given))}; {wanted} is needed")
        given = tuple(given[name] for name in names)
    if isinstance(given, list | tuple) and all(isinstance(one, Tensor) for one in given):
        return tuple(given)
    what = type(given).__name__
    if isinstance(given, list | tuple):
        what = f"a {what} of {', '.join(type(one).__name__ for one in given) or 'nothing'}"
    leave = "; without .numpy(), which leaves torch" if "ndarray" in what else ""
    if isinstance(given, torch.distributions.Distribution):
        leave = "; give its parameters, of a Normal its loc and scale (of an encoder, with encoder_gives='scale')"
    raise Unusable(f"{role}: gives {what}; a tensor, a tuple of tensors or a dict of them is needed{leave}")


class Pair(VAE):
    """A VAE of two modules that were made elsewhere. u = (x − shift)/width is what they know of x.

    Parameters of a family with a location are undone, loc ↦ shift + width·loc and scale ↦ width·scale, so that the
    density is one of x: that is its Jacobian. A mass has none; its parameters are of x as it is sent, except a mean.
    """

    shift: Tensor
    width: Tensor
    scale: Tensor
    one: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        event_shape: tuple[int, ...],
        *,
        encoder_gives: EncoderGives,
        decoder_gives: DecoderGives,
        units: tuple[Tensor, Tensor] | None,
    ) -> None:
        """units: shift and width, of the event's shape each, float64; None where x is taken as it is."""
        super().__init__(encoder, decoder, likelihood, event_shape)  # type: ignore[arg-type]  # any two modules
        self.encoder_gives, self.decoder_gives = encoder_gives, decoder_gives
        self.converts = units is not None
        plain = torch.zeros(event_shape).double(), torch.ones(event_shape).double()
        self.register_buffer("shift", (units or plain)[0])
        self.register_buffer("width", (units or plain)[1])
        size = int(torch.Size(event_shape).numel())
        self.register_buffer("scale", torch.ones(size, dtype=torch.float64))  # of x, where the decoder gives a mean
        self.register_buffer("one", torch.ones(()))
        self.latent_size = 0  # until the encoder has been looked at

    def take(self, encoder: nn.Module, decoder: nn.Module, decoder_gives: DecoderGives, latent_size: int) -> None:
        """Take the two as they were traced, and what became of the decoder's outputs."""
        self.encoder, self.decoder = encoder, decoder  # type: ignore[assignment]  # any two modules
        self.decoder_gives, self.latent_size = decoder_gives, latent_size

    @property
    def dtype(self) -> torch.dtype:
        """What the two compute in."""
        return self.one.dtype

    def converted(self, x: Tensor) -> Tensor:
        """u, as the encoder is given it."""
        return ((x.double() - self.shift) / self.width).to(self.dtype) if self.converts else x.to(self.dtype)

    def posterior(self, x: Tensor) -> DiagonalNormal:
        """q(z|x)."""
        return self.posterior_of(self.converted(x))

    def posterior_of(self, u: Tensor) -> DiagonalNormal:
        """The same of what the encoder is given."""
        mean, spread = self.encoder(u)
        match self.encoder_gives:
            case "log_scale":
                log_scale = spread
            case "log_variance":
                log_scale = 0.5 * spread
            case "scale":
                log_scale = aligned(torch.log, spread)
            case "variance":
                log_scale = 0.5 * aligned(torch.log, spread)
        return DiagonalNormal(mean, log_scale)

    def parameters_at(self, z: Tensor) -> Parameters:
        """The parameters of p(x|z) with flat events, in the units of x."""
        given = self.decoder(z.to(self.dtype))
        family = self.likelihood.family
        if self.decoder_gives == "mean":
            return self._from_mean(given[0].flatten(1))
        named = zip(self.likelihood.parameter_names, given, strict=True)
        parameters = {name: self._flat(name, value) for name, value in named}
        if self.decoder_gives == "probabilities":
            return {"logits": self._logits(parameters["logits"])}
        if self.converts and family in LOCATED:
            width, shift = self.width.flatten(), self.shift.flatten()
            parameters["loc"] = shift + width * parameters["loc"].double()
            parameters["scale"] = width * parameters["scale"].double()
        return {name: self._held(value) for name, value in parameters.items()}

    def _flat(self, name: str, value: Tensor) -> Tensor:
        """(rows, *event, …) → (rows, D, …)."""
        shape = self.likelihood.parameter_shape(name, (self.shift.numel(),))
        return value.reshape(value.shape[0], *shape)

    def _held(self, value: Tensor) -> Tensor:
        """In the dtype that the family's arithmetic is to have."""
        return value.to(self.dtype) if self.likelihood.family in IN_FLOAT32 else value.double()

    def _from_mean(self, mean: Tensor) -> Parameters:
        """A location with the scale, a rate, or the logits of a probability."""
        if self.converts:
            mean = self.shift.flatten() + self.width.flatten() * mean.double()
        name = MEANS[self.likelihood.family]
        if name == "logits":
            return {"logits": self._logits(mean)}
        scale = {"scale": self._held(self.scale)} if self.likelihood.family in SCALED else {}
        return {name: self._held(mean), **scale}

    def _logits(self, probabilities: Tensor) -> Tensor:
        """log P; less log(1 − P) where it is of 1 against 0."""
        p = probabilities.double()
        logs = aligned(torch.log, p)
        return self._held(logs if self.likelihood.family == "categorical" else logs - aligned(torch.log, 1.0 - p))
