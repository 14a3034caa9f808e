"""Models: what is served, by name and version. Knows how an artifact becomes a model, not what is asked of it.

model        a manifest with its digest, and a door to each of its graphs
opening      how an artifact becomes one
registry     every model by name and version, and who is ready
"""

from service.models.model import DEFAULT_DRAWS, DEFAULT_SEED, Key, Model, Opener, Workshop
from service.models.opening import Opened, Shelf, find, load, on_disk, open_artifact, open_one, open_or_refuse, put_up
from service.models.registry import Models, State

__all__ = [
    "DEFAULT_DRAWS",
    "DEFAULT_SEED",
    "Key",
    "Model",
    "Models",
    "Opened",
    "Opener",
    "Shelf",
    "State",
    "Workshop",
    "find",
    "load",
    "on_disk",
    "open_artifact",
    "open_one",
    "open_or_refuse",
    "put_up",
]
