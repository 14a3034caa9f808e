"""vae-serve: trained variational autoencoders behind an API. Knows nothing of how they were trained."""

import os

# onnxruntime reports usage unless told otherwise before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# NumPy computes on the thread that asks it: rows are many, their matrices small, and the lanes have the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
