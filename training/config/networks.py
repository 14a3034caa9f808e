"""Networks: the encoder's and the decoder's kinds and sizes, as a run's config names them. Knows no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from training.part import Part, Size, Sizes


class Mlp(Part):
    """Dense layers; `sizes` are the hidden ones, in the order that the data goes through them."""

    kind: Literal["mlp"]
    sizes: Sizes


class MlpEncoder(Mlp):
    """The same for an encoder; with `embedding`, levels of categorical and ordinal columns are so many numbers first.

    They are learned, and each column has its own.
    """

    embedding: Annotated[Size | None, Field(description="numbers that a level becomes")] = None


class Halving(Part):
    """Convolutions that halve (encoder) or double (decoder) each side at each of `sizes` channels, and a dense layer.

    A picture is (height, width), or (channels, height, width). A window of a time series is (length,), or (channels,
    length), and goes through the kinds that end in 1d. Sizes are written from the event inwards in the encoder and
    outwards in the decoder.
    """

    sizes: Sizes
    dense: Size


class Conv(Halving):
    """A convolution and a ReLU at each size."""

    kind: Literal["conv", "conv1d"]


class Residual(Halving):
    """The same with so many residual blocks at each size; fresh ones do nothing, so that it begins as a `conv`."""

    kind: Literal["residual", "residual1d"]
    blocks: Annotated[int, Field(ge=1, le=16)] = 1


EncoderNetwork = Annotated[MlpEncoder | Conv | Residual, Field(discriminator="kind")]
DecoderNetwork = Annotated[Mlp | Conv | Residual, Field(discriminator="kind")]
Network = Mlp | Conv | Residual
