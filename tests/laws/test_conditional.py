"""A feature given the others, against exact truth: linear-Gaussian models, whose conditionals have closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.linear import Linear, made, write
from service import conditional, noise
from service.conditional import Doubles
from service.evidence import tails
from tests.kit import configured, open_house


def exact(model: Linear, x: Doubles) -> Doubles:
    """log p(x_j|x_−j): with P the precision of p(x), x_j|x_−j has variance 1/P_jj and x_j − mean = (P(x−b))_j/P_jj."""
    P = np.linalg.inv(model.W @ model.W.T + np.diag(model.s**2))
    away = (x - model.b) @ P / np.diag(P)
    return np.asarray(-0.5 * (away**2 * np.diag(P) + np.log(2 * np.pi / np.diag(P))))


def drawn(model: Linear, x: Doubles, draws: int, seed: int = 0) -> tuple[Doubles, Doubles]:
    """log p(x, z) − log q(z|x), (rows, draws), and log p(x_j|z), (rows, draws, D), at draws from q."""
    epsilon = noise.bank(seed, draws, model.W.shape[1]).noise.astype(np.float64)
    z = model.mean(x)[:, None] + model.scale * epsilon
    residual = ((x - model.b)[:, None] - z @ model.W.T) / model.s
    log_q = (-0.5 * epsilon**2 - 0.5 * np.log(2 * np.pi) - np.log(model.scale)).sum(-1)
    return model.joint(x, z) - log_q, -0.5 * residual**2 - np.log(model.s) - 0.5 * np.log(2 * np.pi)


@pytest.mark.parametrize(("d", "off"), [(1, 0.02), (4, 0.1)])
def test_a_feature_given_the_others_is_exact(d: int, off: float) -> None:
    """With one latent q is the posterior; with more it is the best diagonal one, and the weights make it right."""
    model = made(d, D=16)
    x = model.sample(60, 1)
    found, k = conditional.left_out(*drawn(model, x, 2048))
    error = np.abs(found - exact(model, x))
    assert (k < 0.7).mean() > 0.8
    assert np.quantile(error[k < 0.7], 0.95) < off
    assert error[k < 0.7].max() < 0.5


def test_where_draws_are_few_or_q_is_wrong_k_says_so() -> None:
    """A q of half the scale is off by nats; what is below 0.7 by half a nat at most. Below 25 draws k is NaN."""
    model = made(4, D=16, stretch=0.5)
    x = model.sample(60, 1)
    found, k = conditional.left_out(*drawn(model, x, 512))
    error = np.abs(found - exact(model, x))
    assert (k > 0.7).mean() > 0.9
    assert error.max() > 1.0
    assert error[k < 0.7].max(initial=0.0) < 0.5
    _, few = conditional.left_out(*drawn(model, x, 16))
    assert np.isnan(few).all()


@pytest.mark.anyio
async def test_a_score_is_not_held_to_its_q(tmp_path: Path) -> None:
    """With the same q, and 16 draws for the bound, what is served is exact: its draws are of a fitted proposal."""
    model = made(4, D=16, stretch=0.5)
    write(model, tmp_path, "narrow")
    x = model.sample(12, 1)
    async with open_house(configured(tmp_path)) as house:
        found = await house.answer("narrow/score", {"inputs": x.tolist(), "conditionals": True})
    k = np.array(found["feature_conditional_k"])
    assert np.mean(k < tails.threshold(1024)) > 0.95
    off = np.abs(np.array(found["feature_conditional"]) - exact(model, x))[k < tails.threshold(1024)]
    assert np.quantile(off, 0.95) < 0.05
    assert off.max() < 0.5


def test_with_equal_terms_nothing_depends_on_the_feature() -> None:
    """A term that is 0 at every draw, a missing value, is 0 given the others: exactly."""
    model = made(3, D=16)
    log_weight, terms = drawn(model, model.sample(5, 2), 64)
    terms[:, :, 4] = 0.0
    found, k = conditional.left_out(log_weight, terms)
    assert not found[:, 4].any()
    assert np.array_equal(k[:, 4], conditional.weigh(log_weight).pareto_k)


@pytest.mark.parametrize("draws", [16, 64, 257])
def test_a_rows_conditionals_do_not_depend_on_its_place(draws: int) -> None:
    """The same to the last bit, alone or anywhere among others, and so are the weights."""
    model = made(2, D=48)
    log_weight, terms = drawn(model, model.sample(30, 3), draws)
    values, k = conditional.left_out(log_weight, terms)
    weights = conditional.weigh(log_weight)
    for row in (0, 1, 13, 29):
        alone = slice(row, row + 1)
        value, tail = conditional.left_out(log_weight[alone].copy(), terms[alone].copy())
        assert np.array_equal(value[0], values[row])
        assert np.array_equal(tail[0], k[row], equal_nan=True)
        weight = conditional.weigh(log_weight[alone].copy())
        assert np.array_equal(weight.each[0], weights.each[row])
        assert np.array_equal(weight.pareto_k[0], weights.pareto_k[row], equal_nan=True)


def test_a_row_that_no_draw_gives_weight_has_no_answer() -> None:
    """Legal and absurd rows: NaN, and the rows beside them are answered."""
    model = made(2, D=16)
    log_weight, terms = drawn(model, model.sample(3, 4), 64)
    log_weight[1], terms[1] = -np.inf, -np.inf
    values, _ = conditional.left_out(log_weight, terms)
    assert np.isnan(values[1]).all()
    assert np.isfinite(values[[0, 2]]).all()
    weights = conditional.weigh(log_weight)
    assert np.isnan(weights.each[1]).all()
    assert np.isnan(weights.pareto_k[1])
    np.testing.assert_allclose(weights.each[[0, 2]].sum(-1), 1.0, rtol=1e-12)


def test_draws_are_picked_as_often_as_they_weigh() -> None:
    """By evenly spread uniforms each draw comes as often as its weight says, to one."""
    weights = np.random.default_rng(0).dirichlet(np.ones(20), size=3)
    uniforms = np.broadcast_to((np.arange(1000) + 0.5) / 1000, (3, 1000))
    chosen = conditional.pick(weights, uniforms)
    counts = np.array([np.bincount(row, minlength=20) for row in chosen])
    assert np.abs(counts - 1000 * weights).max() <= 1.0
