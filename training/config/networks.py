"""Networks: the encoder's and the decoder's kinds and sizes, as a run's config names them. Knows no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from training.part import Part, Size, Sizes


class Mlp(Part):
    """Dense layers; `sizes` are the hidden ones, in the order that the data goes through them."""

    kind: Literal["mlp"]
    sizes: Sizes


class Conv(Part):
    """Convolutions that halve (encoder) or double (decoder) the picture at each of `sizes` channels, and a dense layer.

    A picture is (height, width), or (channels, height, width).
    Sizes are written from the picture inwards in the encoder and outwards in the decoder.
    """

    kind: Literal["conv"]
    sizes: Sizes
    dense: Size


Network = Annotated[Mlp | Conv, Field(discriminator="kind")]
