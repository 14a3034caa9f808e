"""Training: data → a fitted VAE → an artifact that the service serves. Imports the service; never the reverse.

`training.export` is the door for models that were made elsewhere; it brings torch along once it is asked for.
"""

from typing import TYPE_CHECKING, Any

import service as service  # first, so that onnxruntime's telemetry is off before anything imports it

if TYPE_CHECKING:
    from training.own.assembly import export as export


def __getattr__(name: str) -> Any:
    """`export`, when somebody wants it."""
    if name == "export":
        from training.own.assembly import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
