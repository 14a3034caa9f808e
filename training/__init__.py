"""Training: data → a fitted VAE → an artifact that the service serves. Imports the service; never the reverse.

`training.export` is the door for models that were made elsewhere, and `training.adapters` leads other libraries' to it;
they bring torch along once they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

import service as service  # first, so that onnxruntime's telemetry is off before anything imports it

if TYPE_CHECKING:
    from training import adapters as adapters
    from training.own.assembly import export as export


def __getattr__(name: str) -> Any:
    """`export` and `adapters`, when somebody wants them."""
    if name == "export":
        from training.own.assembly import export

        return export
    if name == "adapters":
        return importlib.import_module("training.adapters")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
