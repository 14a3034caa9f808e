"""The plan: how many workers there are, and what each may take of what is set for all. Starts nothing."""

from __future__ import annotations

import sys
import tempfile

from service.engine import may_be_cuda
from service.lanes import cores
from service.settings import Settings


def count(settings: Settings) -> int:
    """How many processes serve. 0 is one: several cores are first used by several lanes, which cost no memory."""
    return settings.workers or 1


def obstacle(settings: Settings) -> str | None:
    """Why there can't be several workers here, if that is so."""
    if not sys.platform.startswith("linux"):
        return "several workers share a port and a parent's memory as Linux does it, and this isn't Linux; set 1"
    if settings.device == "cuda":
        return "one process owns a CUDA device, and its memory can't be forked; set 1, or VAE_SERVE_DEVICE=cpu"
    if may_be_cuda(settings.device):
        return "this onnxruntime may take a CUDA device, which one process owns; set 1, or VAE_SERVE_DEVICE=cpu"
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # nor can the working folder be written
        return "workers count together in files, and no temporary folder can be written; set 1, or TMPDIR to one"
    return None


def share(settings: Settings, workers: int) -> Settings:
    """A worker's settings: the lanes that it is given or its share of the cores, and its share of what may be held."""
    return settings.model_copy(
        update={
            "workers": 1,
            "device": "cpu",
            "lanes": settings.lanes or max(1, cores() // workers),
            "max_held_bytes": max(1, settings.max_held_bytes // workers),
            "waiting": max(1, settings.waiting // workers),
        }
    )
