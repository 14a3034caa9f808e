"""Tables: a bound on the evidence of a normalised mixture, and scores that are a function of the row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import simpson

from training import tables
from training.config import Unusable
from training.tables import Table

Doubles = NDArray[np.float64]
QUICK = replace(tables.RECIPE, hidden=32, steps=150, exemplars=64, beside=64)


def skewed(rows: int, columns: int, seed: int = 0) -> Doubles:
    """Rows with a tail in every column, and a deviation far from 1."""
    return 50.0 * np.exp(0.5 * np.random.default_rng(seed).normal(size=(rows, columns)))


@pytest.fixture(scope="module")
def table() -> Table:
    """A table whose rows are easy to tell apart."""
    return tables.fit(skewed(300, 3), QUICK, seed=1)


def test_the_bound_is_below_a_density_that_integrates_to_one() -> None:
    """∫ exp(bound) dx ≤ 1 for every member, in the units of the rows, and most of it is there.

    A bound from finitely many draws has an error, of either sign: hence many draws, and a little room.
    """
    one = tables.fit(skewed(300, 1), replace(QUICK, members=1, draws=64, exemplars=32), seed=3)
    x = np.linspace(-400.0, 800.0, 3001)
    for bounds in one.bounds(x[:, None]):
        assert 0.6 < simpson(np.exp(bounds), x=x) < 1.005


def test_the_score_bounds_the_mixture(table: Table) -> None:
    """The score is at most the log of the members' weighted densities, with weights that sum to 1."""
    rows = skewed(50, 3, seed=2)
    mixture = np.log((table.weights[:, None] * np.exp(table.bounds(rows))).sum(0))
    assert table.weights.sum() == pytest.approx(1.0)
    assert (table.weights > 0).all()
    assert (table.score(rows) <= mixture + 1e-12).all()


def test_the_score_is_in_the_units_of_the_rows() -> None:
    """A unit 1024 times smaller takes log 1024 from the log density of each column, and changes no order."""
    rows, quick = skewed(60, 2), replace(QUICK, steps=30)
    before = tables.fit(rows, quick, seed=2).score(rows)
    after = tables.fit(1024.0 * rows, quick, seed=2).score(1024.0 * rows)
    np.testing.assert_allclose(after, before - 2 * np.log(1024.0), atol=1e-9)


def test_a_row_has_the_same_bits_in_any_company(table: Table) -> None:
    """Alone, in another place, or among absurd rows."""
    rows = skewed(300, 3, seed=4)
    scores = table.score(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(table.score(rows[order]), scores[order])
    assert np.array_equal(table.score(rows[7:8]), scores[7:8])
    assert np.array_equal(table.score(np.concatenate((1e9 * rows, rows)))[300:], scores)
    surprises = table.surprise(rows)
    assert np.array_equal(table.surprise(rows[order]), surprises[order])
    assert np.array_equal(table.surprise(rows[7:8]), surprises[7:8])


def test_the_same_seed_gives_the_same_scores() -> None:
    """Fitting draws from the seed alone."""
    rows, quick = skewed(60, 2), replace(QUICK, steps=20)
    first = tables.fit(rows, quick, seed=5).score(rows)
    assert np.array_equal(tables.fit(rows, quick, seed=5).score(rows), first)
    assert not np.array_equal(tables.fit(rows, quick, seed=6).score(rows), first)


def test_what_tables_are_like_in_practice() -> None:
    """Constant, binary, whole and enormous columns, repeated rows and wild new ones: scores are finite all the same."""
    generator = np.random.default_rng(0)
    whole, huge = generator.integers(0, 3, 40), 1e12 * generator.standard_cauchy(40)
    columns = (np.full(40, 0.1), generator.integers(0, 2, 40), whole, huge, np.r_[1.0, np.zeros(39)])
    rows = np.repeat(np.stack(columns, axis=1), 2, axis=0)
    fitted = tables.fit(rows, replace(QUICK, steps=50), seed=0)
    assert fitted.deviation[0] == 1.0
    wild = np.concatenate((rows, rows + 1e3, np.full((1, 5), -1e15)))
    assert np.isfinite(fitted.score(wild)).all()
    assert fitted.score(rows).mean() > fitted.score(rows + 1e3).mean()
    assert np.isfinite(fitted.surprise(wild)).all()
    assert np.isfinite(tables.fit(np.ones((8, 2)), replace(QUICK, steps=5)).score(np.zeros((2, 2)))).all()


def test_what_is_like_the_fitted_rows_surprises_as_a_standard_normal_would(table: Table) -> None:
    """Every member's surprises of new rows of the same source; stranger rows surprise more, without end."""
    rows = skewed(2000, 3, seed=6)
    for member, bounds in zip(table.members, table.bounds(rows), strict=True):
        surprises = member.surprises(bounds)
        assert abs(surprises.mean()) < 0.35  # among 60 held-out rows at least: 0.13, and what fitting costs
        assert 0.7 < surprises.std() < 1.4
    further = table.surprise(rows[:1] + np.array([[0.0], [1e3], [1e4], [1e5]]))
    assert (np.diff(further) > 0).all()


def test_a_row_that_was_seen_often_is_expected_where_it_was_seen() -> None:
    """Two thin rings, one around the other: what lies between them surprises more than what lies on them."""
    generator = np.random.default_rng(7)
    angle, radius = generator.uniform(0, 2 * np.pi, 400), generator.choice([1.0, 3.0], 400)
    rings = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1) + 0.05 * generator.normal(size=(400, 2))
    fitted = tables.fit(rings[:200], QUICK, seed=0)
    between = 2.0 * np.stack((np.cos(angle[:50]), np.sin(angle[:50])), axis=1)
    assert fitted.surprise(between).min() > np.median(fitted.surprise(rings[200:]))


@pytest.mark.parametrize("rows", [np.zeros((7, 2)), np.zeros(30), np.full((30, 2), np.nan)])
def test_what_is_no_table_is_refused(rows: Doubles) -> None:
    """Too few rows, no rows, or not numbers."""
    with pytest.raises(Unusable):
        tables.fit(rows)
