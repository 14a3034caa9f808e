"""The choice of a score: made from validation rows and strangers, the same every time; the elbo by default."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from service.anomaly import Statistics
from service.artifact import Array, Support
from training import choice, strangers

LEVELS = Support(kind="levels", lowest=0.0, highest=16.0, step=1.0)
REAL = Support(kind="real", lowest=None, highest=None, step=None)


def usual(rows: int, seed: int = 0) -> Statistics:
    """Statistics of typical rows."""
    generator = np.random.default_rng(seed)
    ll, kl, gap = generator.normal(-50, 3, rows), generator.gamma(9, size=rows), generator.exponential(size=rows)
    return Statistics(ll - kl, ll, kl, gap, np.sqrt(kl), generator.normal(2, 0.1, rows))


def moved(found: Statistics, log_likelihood: float, kl: float = 0.0) -> Statistics:
    """The same rows, more or less likely."""
    return dataclasses.replace(
        found,
        elbo=found.elbo + log_likelihood - kl,
        log_likelihood=found.log_likelihood + log_likelihood,
        kl=found.kl + kl,
        mean_norm=np.sqrt(found.kl + kl),
    )


def test_the_elbo_is_taken_where_it_tells_strangers() -> None:
    """And the manifest says why, with figures."""
    typical = usual(200)
    found = choice.choose(typical, {"odd": moved(usual(200, 1), -3, 3), "odder": moved(usual(200, 2), -4, 3)})
    assert found.score == "elbo"
    assert "AUROC" in found.why
    assert "200 validation rows" in found.why


def test_another_is_taken_where_the_elbo_ranks_strangers_above_typical_rows() -> None:
    """Simple strangers are too likely: two-sided scores see that, the elbo doesn't."""
    typical = usual(200)
    found = choice.choose(typical, {"odd": moved(usual(200, 1), -12), "simple": moved(usual(200, 2), 12)})
    assert found.score in ("typicality", "density_of_states")
    assert "simple" in found.why
    assert found == choice.choose(typical, {"odd": moved(usual(200, 1), -12), "simple": moved(usual(200, 2), 12)})


def test_by_few_rows_nothing_is_chosen() -> None:
    """Fewer than twenty say nothing, and the manifest says that."""
    found = choice.choose(usual(9), {"simple": moved(usual(9, 1), 50)})
    assert (found.score, found.why) == ("elbo", "9 validation rows are too few to choose by")


def test_worth_is_the_area_under_the_curve_and_its_error_is_honest() -> None:
    """Ties and infinities included; the error is that of the mean over many samples."""
    generator = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(300):
        rows, others = generator.integers(0, 9, 60).astype(float), generator.integers(3, 12, 60).astype(float)
        others[0] = np.inf
        found = choice.worth({"kind": (rows, others)})
        labels = np.r_[np.zeros(60), np.ones(60)]
        assert found.mean == pytest.approx(roc_auc_score(labels, np.r_[rows, np.minimum(others, 99)]))
        means.append(found.mean)
        errors.append(found.influence.std(ddof=1) / np.sqrt(60))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.2)


def test_what_a_score_needs_is_fitted_on_other_rows() -> None:
    """A typical row's own number never enters the density that it is judged by."""
    typical = usual(50)
    spoilt = dataclasses.replace(typical, elbo=typical.elbo.copy())
    spoilt.elbo[0] = 1e6
    centre = np.median(np.delete(typical.elbo, np.arange(0, 50, choice.FOLDS)))
    judged = choice.judged(spoilt, {"same": typical})["typicality"]["same"]
    assert judged[0][0] == pytest.approx(1e6 - centre)
    assert judged[1][0] == pytest.approx(abs(typical.elbo[0] - centre))


@pytest.mark.parametrize(("shape", "support"), [((7,), REAL), ((6, 5), LEVELS), ((6, 6), REAL), ((4, 6, 2), LEVELS)])
def test_strangers_keep_to_the_support_and_are_made_again(shape: tuple[int, ...], support: Support) -> None:
    """Of the rows' shape and dtype, with values that occur, the same for the same seed, and none of them the rows."""
    generator = np.random.default_rng(0)
    rows: Array = generator.integers(0, 17, (30, *shape)).astype("uint8" if support.kind == "levels" else "float64")
    found = strangers.made(rows, support, 0)
    again = strangers.made(rows, support, 0)
    assert set(strangers.TABLES) <= set(found)
    assert ("constant" in found) == (len(shape) > 1)
    assert ("inverted" in found) == (len(shape) > 1 and support.kind == "levels")
    for kind, others in found.items():
        assert (others.shape, others.dtype) == (rows.shape, rows.dtype)
        assert set(np.unique(others)) <= set(np.unique(rows))
        np.testing.assert_array_equal(others, again[kind])
        assert not np.array_equal(others, rows)


def test_mixed_rows_keep_every_column_s_values() -> None:
    """Only what goes together is broken."""
    rows = np.random.default_rng(0).normal(size=(40, 3))
    others = strangers.made(rows, REAL, 0)["mixed"]
    np.testing.assert_array_equal(np.sort(others, axis=0), np.sort(rows, axis=0))
