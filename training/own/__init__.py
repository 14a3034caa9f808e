"""Own: a VAE that was made elsewhere, as torch modules or ONNX files → an artifact like any other, or why it can't be.

`assembly` is the door; `training.export` leads to it. Knows no library that models come from.
"""
