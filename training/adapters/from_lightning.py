"""Lightning checkpoints: the weights of somebody's LightningModule. What is no weight is never unpickled into code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from training.config import Unusable

Module = TypeVar("Module", bound=nn.Module)
COMPILED = "_orig_mod."  # what torch.compile puts before the names of weights


def lightning(checkpoint: Path | str, into: Module) -> Module:
    """A module with a checkpoint's weights, in eval mode; hand its encoder and decoder to `training.export`.

    into: the LightningModule that the checkpoint is of, freshly made (or any module whose weights have those names).
    The file is read with torch's weights_only: a pickle that would run code is refused, whoever made it.

    Unusable where the file is no checkpoint, holds code, or holds other weights than the module has.
    """
    target: object = into
    if not isinstance(target, nn.Module):
        called = f"; call it: {target.__name__}(…)" if isinstance(target, type) else ""
        raise Unusable(
            f"lightning: into is a {type(target).__name__}, and the module is needed whose weights the checkpoint "
            f"holds, made as it was then{called}"
        )
    path = Path(checkpoint)
    held = _read(path)
    if {"run", "splits", "figures"} <= held.keys():
        raise Unusable(f"{path}: is a checkpoint of this trainer; say python -m training export {path.parent}")
    state = held.get("state_dict")
    if not isinstance(state, dict):
        raise Unusable(
            f"{path}: holds no state_dict; save one by trainer.save_checkpoint, or torch.save it by that name"
        )
    weights = {name.replace(COMPILED, ""): value for name, value in state.items()}
    try:
        into.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise Unusable(f"{path}: isn't of a {type(into).__name__} made as this one is: {said}") from error
    return into.eval()


def _read(path: Path) -> dict[str, object]:
    """What a checkpoint holds: tensors and plain values, or it isn't read."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise Unusable(
            f"{path}: holds more than tensors and plain values, and nothing of that kind is ever unpickled, for it may "
            "run code. Where you trust it, load it and write its weights alone: "
            "torch.save({'state_dict': module.state_dict()}, 'weights.ckpt')"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise Unusable(
            f"{path}: isn't a checkpoint that torch can read: {' '.join(str(error).split())[:200]}"
        ) from error
    if not isinstance(held, dict):
        raise Unusable(f"{path}: holds a {type(held).__name__}, and a dict with a state_dict is needed")
    return held
