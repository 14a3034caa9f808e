"""Fitting: what is maximised, by which steps, on which devices. Knows no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from training.part import Part, Size

SHORT = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


class Objective(Part):
    """What is maximised, with so many `draws` of each row in a step.

    elbo: E_q[log p(x|z)] − β·KL, β rising linearly over the first `warm_up` epochs, and `free_bits` nats of each
    latent's KL costing nothing. importance_weighted: E_q[log mean w], the encoder's gradient doubly reparameterised.
    """

    kind: Literal["elbo", "importance_weighted"] = "elbo"
    draws: Annotated[int, Field(ge=1, le=4096)] = 1
    beta: Annotated[float, Field(ge=0)] = 1.0
    warm_up: Annotated[int, Field(ge=0)] = 0
    free_bits: Annotated[float, Field(ge=0, description="nats")] = 0.0

    @model_validator(mode="after")
    def _weights_are_whole(self) -> Self:
        if self.kind == "elbo":
            return self
        if self.beta != 1 or self.warm_up or self.free_bits:
            raise ValueError("importance_weighted has no KL of its own to weigh: leave out beta, warm_up and free_bits")
        if self.draws < 2:
            raise ValueError("importance_weighted with one draw is the elbo: set draws to 2 or more")
        return self


class Optimiser(Part):
    """Adam, stopped when the held-out bound has not risen for `patience` epochs."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Size = 64
    epochs: Size = 100
    patience: Size = 10


class Missing(Part):
    """Train for missing values: each row of each batch loses a share of them, uniform between `least` and `most`."""

    least: Annotated[float, Field(ge=0, le=1)] = 0.0
    most: Annotated[float, Field(gt=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError("least is above most")
        return self


class Trainer(Part):
    """Where and how it is computed; what Lightning's Trainer is handed under these names.

    accelerator auto is the first GPU that CUDA has, else the processor. devices: how many, −1 or auto for all, or
    which. Several take a part each of every batch (strategy ddp), which stays as large as it is said to be.
    """

    accelerator: str = "auto"
    devices: int | list[Annotated[int, Field(ge=0)]] | Literal["auto"] = 1
    strategy: str = "auto"
    precision: Literal["32-true", "64-true", "16-mixed", "bf16-mixed"] = "32-true"
    num_nodes: Size = 1

    @field_validator("precision", mode="before")
    @classmethod
    def _shortly(cls, given: object) -> object:
        """Lightning's short spellings."""
        return SHORT.get(str(given), given)

    @field_validator("accelerator")
    @classmethod
    def _has_doubles(cls, given: str) -> str:
        if given == "mps":
            raise ValueError("mps has no float64, which log-likelihoods are computed in")
        return given

    @field_validator("devices")
    @classmethod
    def _some(cls, given: int | list[int] | str) -> int | list[int] | str:
        if given in (0, []) or (isinstance(given, int) and given < -1):
            raise ValueError("how many, at least 1; −1 or auto for all; or which, as a list")
        return given
