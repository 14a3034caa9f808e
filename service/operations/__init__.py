"""Operations: what the service can do with a VAE, each said once. Knows nothing of HTTP.

Rows are checked here, before they queue, so that one bad row never reaches its neighbours. An `Errand` goes along
with each operation: it carries the deadline in and the clock readings out.
"""

from service.batcher import Answer, Batcher, Ticket
from service.operations.calibrations import Keeping, calibrate, facts, measured, refer
from service.operations.draws import Normal, encoded, posterior, prior
from service.operations.errand import Errand
from service.operations.evidence import Evidence, evidence_of
from service.operations.impute import Imputation, impute
from service.operations.latents import (
    Encoding,
    Samples,
    decode,
    decode_parameters,
    decode_sample,
    encode,
    reconstruct,
    sample,
)
from service.operations.rows import admit
from service.operations.scores import (
    Calibrated,
    Explanation,
    Rule,
    Score,
    Standing,
    calibrated,
    post_score,
    score,
    standing,
    terms,
)

__all__ = [
    "Answer",
    "Batcher",
    "Calibrated",
    "Encoding",
    "Errand",
    "Evidence",
    "Explanation",
    "Imputation",
    "Keeping",
    "Normal",
    "Rule",
    "Samples",
    "Score",
    "Standing",
    "Ticket",
    "admit",
    "calibrate",
    "calibrated",
    "decode",
    "decode_parameters",
    "decode_sample",
    "encode",
    "encoded",
    "evidence_of",
    "facts",
    "impute",
    "measured",
    "post_score",
    "posterior",
    "prior",
    "reconstruct",
    "refer",
    "sample",
    "score",
    "standing",
    "terms",
]
