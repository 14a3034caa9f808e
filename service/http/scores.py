"""Scores: the ELBO of each row. Wire models beside their operation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, cast

from pydantic import BaseModel, Field

from service import anomaly, operations
from service.appraisal import Yardstick
from service.artifact import Array, Arrays
from service.errors import Problem
from service.http import latents
from service.http.exchange import INLINE, Answered, Desk, Drop, Fields, Operation
from service.http.latents import INPUTS
from service.http.telemetry import Visit
from service.models import Model
from service.noise import SEEDS
from service.operations.left_out import cost

Numbers = list[float | None]
UNSAID = cast(int, None)  # a default that the caller can't send: null is not a number


class Score(Fields):
    """What score takes besides its rows. Draws and seed default to those of the artifact's calibration."""

    draws: int = Field(UNSAID, ge=1, description="draws from q(z|x) a row; default: as calibrated, else 16")
    seed: int = Field(UNSAID, ge=0, lt=SEEDS, description="of the noise bank; default: as calibrated, else 0")
    alpha: float = Field(0.05, gt=0, lt=1, description="anomaly is p_value ≤ alpha; with fdr it decides nothing")
    fdr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="the share of false discoveries: anomaly is then decided for all rows of the request together "
        "(Benjamini & Hochberg)",
    )
    correction: Literal["none", "simes"] = Field(
        "none",
        description="simes: p-values that hold for this calibration set with probability ≥ confidence, not only on "
        "average over such sets",
    )
    confidence: float = Field(0.9, gt=0, lt=1, description="of the correction")
    explain: bool = Field(False, description="also what each feature and each latent adds")
    conditionals: bool = Field(False, description="also log p(x_j|x_−j) of each feature, by 1,024 draws of its own")


class CalibrationFacts(Fields):
    """What the p-values rest on."""

    n: int | None = Field(description="held-out rows")
    seed: int | None
    draws: int | None
    smallest_p: float | None = Field(description="the least p-value that a row can have: 1/(n+1), if not corrected")
    reason: str | None = Field(description="why there are no p-values, where there are none")
    score: str | None = Field(description="the score that p_value and anomaly are of")
    warning: str | None = Field(description="what can't be found with so few held-out rows, where that is so")


class OneScore(BaseModel):
    """One score of each row, as it is, and where it stands."""

    value: Numbers
    p_value: Numbers | None = Field(description="the share of held-out rows that are as strange; null: see calibration")


class Scored(latents.Answered):
    """One entry a row, in nats of the density or mass that the manifest names; null where it can't be given."""

    elbo: Numbers = Field(description="a lower bound on log p(x): log_likelihood − kl")
    elbo_error: Numbers = Field(description="standard error of elbo over noise banks")
    elbo_error_df: int = Field(description="its degrees of freedom")
    log_likelihood: Numbers = Field(description="E_q[log p(x|z)]")
    kl: Numbers = Field(description="KL(q(z|x) ‖ p(z)); exact, or the draws' mean where the manifest says sampled")
    bits_per_dim: Numbers | None = Field(None, description="where the family is discrete")
    scores: dict[str, OneScore] = Field(description="elbo, log_likelihood, kl, iwae_gap, typicality, density_of_states")
    p_value: Numbers | None = Field(description="of the score that calibration.score names; small is strange")
    anomaly: list[bool | None] | None = Field(description="p_value ≤ alpha; with fdr, a discovery at that level")
    calibration: CalibrationFacts
    seed: int
    draws: int
    feature_log_likelihood: list[Any] | None = Field(None, description="[n, *event]; sums to log_likelihood")
    latent_kl: list[list[float]] | None = Field(None, description="[n, d]; sums to kl; left out where kl is sampled")
    feature_deviation: list[Any] | None = Field(
        None,
        description="[n, *event]; how far each term lies from the calibration's median, in scales; high is strange",
    )
    latent_deviation: list[list[float]] | None = Field(None, description="[n, d]; the same of latent_kl")
    feature_names: list[str] | None = Field(None, description="the columns, where the manifest names them")
    feature_conditional: list[Any] | None = Field(None, description="[n, *event]; log p(x_j|x_−j)")
    feature_conditional_k: list[Any] | None = Field(
        None,
        description="[n, *event]; rely on those below min(0.7, 1 − 1/log10 S) alone, S = max(1024, draws); "
        "null where it can't be told",
    )


async def score(desk: Desk, model: Model, asked: Score, rows: Array, visit: Visit) -> dict[str, Any]:
    """The ELBO of each row with its error, and where it stands among held-out rows."""
    draws = asked.draws or model.draws
    desk.count(visit, rows, draws)
    if asked.conditionals:
        desk.count(visit, rows, cost(draws), cost(draws))
    found = await operations.score(
        model,
        rows,
        draws=draws,
        seed=asked.seed,
        alpha=asked.alpha,
        fdr=asked.fdr,
        correction=asked.correction,
        confidence=asked.confidence,
        explain=asked.explain,
        conditionals=asked.conditionals,
        errand=visit.errand,
    )
    visit.anomalies = sum(map(bool, found.anomaly or ()))
    return on_the_wire(found)


def quick(desk: Desk, model: Model, asked: Score, rows: Array, visit: Visit, tell: Answered) -> Drop | None:
    """The same without a task, for few rows and nothing but what every pass gives."""
    if asked.explain or asked.conditionals or rows.size > INLINE:
        return None
    draws = asked.draws or model.draws
    desk.count(visit, rows, draws)

    def told(found: operations.Score | Problem) -> None:
        if isinstance(found, Problem):
            tell(found)
            return
        visit.anomalies = sum(map(bool, found.anomaly or ()))
        tell(on_the_wire(found))

    rule = operations.Rule(asked.alpha, asked.fdr, asked.correction, asked.confidence)
    return operations.post_score(model, rows, draws, asked.seed, rule, visit.errand, told)


def plain(model: Model, by: Yardstick, asked: Score) -> bool:
    """Whether a request is answered by columns alone: nothing decides its rows together, nor explains or warns.

    To be asked before rows are appraised, which shows them to the watch for drift: nobody's are to be shown twice.
    """
    if model.manifest.missing or asked.fdr is not None or asked.correction != "none" or asked.explain:
        return False
    smallest = operations.calibrated(model, by).smallest_p
    return not asked.conditionals and (smallest is None or smallest <= asked.alpha)


class Columns:
    """What an appraisal found of many requests' rows, turned into numbers of answers all at once."""

    def __init__(self, model: Model, by: Yardstick, x: Array, found: Arrays) -> None:
        self.facts, self.arrays = operations.standing(model, by, x, found)
        self.df, self.seed, self.draws = by.error_df, by.bank.seed, by.bank.draws
        self.model, self.by = model, by
        self._lists: dict[str, list[float]] | None = None
        self._names = [name for name in anomaly.KINDS if name in found]

    def flagged(self, start: int, stop: int, alpha: float) -> int:
        """How many of some rows are anomalies."""
        p = self.arrays.get("p_value")
        return 0 if p is None else int((p[start:stop] <= alpha).sum())  # false for NaN

    def fields(self, start: int, stop: int, alpha: float) -> dict[str, Any]:
        """Some rows' answer by the names of the wire, in the wire's order."""
        lists = self._lists
        if lists is None:
            lists = self._lists = {name: array.tolist() for name, array in self.arrays.items()}
        rows = {name: values[start:stop] for name, values in lists.items()}
        p = rows.get("p_value")
        flags = None if p is None else [None if value != value else value <= alpha for value in p]
        fields = {
            "elbo": rows["elbo"],
            "elbo_error": rows["elbo_error"],
            "elbo_error_df": self.df,
            "log_likelihood": rows["log_likelihood"],
            "kl": rows["kl"],
            "scores": {
                name: {"value": rows[f"scores.{name}.value"], "p_value": rows.get(f"scores.{name}.p_value")}
                for name in self._names
            },
            "p_value": p,
            "anomaly": flags,
            "calibration": _facts(self.facts),
            "seed": self.seed,
            "draws": self.draws,
        }
        if "bits_per_dim" in rows:
            fields["bits_per_dim"] = rows["bits_per_dim"]
        return fields


def on_the_wire(found: operations.Score) -> dict[str, Any]:
    """A score by the names it has on the wire."""
    bound = found.bound
    fields = {
        "elbo": bound.elbo,
        "elbo_error": bound.error,
        "elbo_error_df": bound.error_df,
        "log_likelihood": bound.log_likelihood,
        "kl": bound.kl,
        "scores": {name: {"value": one.value, "p_value": one.p_value} for name, one in found.scores.items()},
        "p_value": found.p_value,
        "anomaly": found.anomaly,
        "calibration": _facts(found.calibration),
        "seed": found.seed,
        "draws": found.draws,
    }
    optional = {
        "bits_per_dim": found.bits_per_dim,
        **_explained(found.explanation),
        "feature_conditional": found.feature_conditional,
        "feature_conditional_k": found.feature_conditional_k,
    }
    return fields | {name: array for name, array in optional.items() if array is not None}


@lru_cache(maxsize=256)  # few are told, over and over
def _facts(found: operations.Calibrated) -> dict[str, Any]:
    return {name: getattr(found, name) for name in CalibrationFacts.model_fields}


def _explained(found: operations.Explanation | None) -> dict[str, Any]:
    """An explanation by the names it has on the wire."""
    if found is None:
        return {}
    names = ("feature_log_likelihood", "latent_kl", "feature_deviation", "latent_deviation", "feature_names")
    return {name: getattr(found, name) for name in names}


OPERATIONS = (Operation("score", Score, Scored, score, "inputs", INPUTS, quick=quick),)
