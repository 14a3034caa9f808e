"""Training: data → a fitted VAE → an artifact that the service serves. Imports the service; never the reverse."""

import service as service  # first, so that onnxruntime's telemetry is off before anything imports it
