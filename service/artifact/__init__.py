"""The artifact: the contract on disk between whoever trained a model and whoever serves it. Knows no torch, no HTTP.

<models>/<name>/<version>/
    manifest.json                        what the numbers mean, and the SHA-256 of every other file
    encoder.onnx … terms.onnx            the graphs of `graphs`: five, and up to two more
    golden.npz                           rows and the answers that the graphs must give for them
    calibration.npz                      scores of held-out rows and the noise bank they were made with; optional
    README.md, card-….png                the model card and its pictures, for people; optional
"""

from service.artifact.calibrated import Calibration, Choice, ScoreFacts
from service.artifact.density import FAMILIES, FURTHEST_KNOT, Block, Feature, Measure, Support, joint_measure
from service.artifact.files import Artifact, describe, digest_rows, dump, pack, read, rewrite, unpack, verify, write
from service.artifact.graphs import Array, Arrays, Form, Graph, PosteriorFamily, PriorFamily, graphs
from service.artifact.manifest import (
    CALIBRATION,
    CARD,
    CONFIG,
    FILE,
    GOLDEN,
    MANIFEST,
    NAME,
    PICTURE,
    WEIGHTS,
    Manifest,
    Prior,
)
from service.artifact.parts import File
from service.artifact.provenance import Golden, Parity, Split, Training

__all__ = [
    "CALIBRATION",
    "CARD",
    "CONFIG",
    "FAMILIES",
    "FILE",
    "FURTHEST_KNOT",
    "GOLDEN",
    "MANIFEST",
    "NAME",
    "PICTURE",
    "WEIGHTS",
    "Array",
    "Arrays",
    "Artifact",
    "Block",
    "Calibration",
    "Choice",
    "Feature",
    "File",
    "Form",
    "Golden",
    "Graph",
    "Manifest",
    "Measure",
    "Parity",
    "PosteriorFamily",
    "Prior",
    "PriorFamily",
    "ScoreFacts",
    "Split",
    "Support",
    "Training",
    "describe",
    "digest_rows",
    "dump",
    "graphs",
    "joint_measure",
    "pack",
    "read",
    "rewrite",
    "unpack",
    "verify",
    "write",
]
