"""Weights: the tensors that an artifact's graphs share, in memory once. Knows no file and no row.

The bytes are those whose digest was checked: nothing that the runtime opens is a path. On the CPU each session is given
the very same arrays, and leaves them as they are; so its matrices are not packed anew for its own use, which is what
takes memory, and what makes large products quicker: see docs/large-models.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort

from service.artifact import WEIGHTS
from service.engine.onnxfile import Look, Outside

DTYPES = {1: np.float32, 11: np.float64}  # by ONNX type; tensors of another are copied by each session


@dataclass(frozen=True, slots=True)
class Weights:
    """The bytes of weights.bin, and the arrays made of them. Whoever has a session of them has to keep them."""

    content: bytes = field(repr=False)
    made: dict[Outside, ort.OrtValue] = field(default_factory=dict, repr=False)

    def put(self, options: ort.SessionOptions, seen: Look, *, in_place: bool) -> None:
        """Have a session take its tensors from here: where they lie, or (on a device) as a copy of its own."""
        if not seen.outside:
            return
        options.add_external_initializers_from_files_in_memory([WEIGHTS], [self.content], [len(self.content)])
        if not in_place:
            return
        options.add_session_config_entry("session.disable_prepacking", "1")
        for name, place in seen.outside.items():
            if place.kind in DTYPES:
                options.add_initializer(name, self._value(place))

    def _value(self, place: Outside) -> ort.OrtValue:
        """One tensor; the same for every session."""
        if place not in self.made:
            dtype = np.dtype(DTYPES[place.kind])
            flat = np.frombuffer(self.content, dtype, place.length // dtype.itemsize, place.offset)
            self.made[place] = ort.OrtValue.ortvalue_from_numpy(flat.reshape(place.dims))
        return self.made[place]
