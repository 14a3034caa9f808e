"""Networks for pictures, windows of time series and tables of levels: what they do to a row, and what they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import cbook
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits

from service import artifact
from training import config, data, exporting, fit, graphs, independence, look, vae
from training.config import Run, Unusable
from training.embeddings import Embedded, OneHot
from training.exporting import Exported
from training.fit import Fitted
from training.networks import Block, Encoder

ROWS = 240


def eeg(*shape: int) -> NDArray[np.float64]:
    """Windows of an EEG of four channels that matplotlib carries, overlapping; of the first alone for (length,)."""
    path = cbook.get_sample_data("eeg.dat", asfileobj=False)
    series = np.fromfile(str(path), np.float64).reshape(800, 4)
    channels = shape[0] if len(shape) == 2 else 1
    windows = np.stack([series[start : start + shape[-1], :channels].T for start in range(0, 3 * ROWS, 3)])
    return np.ascontiguousarray(windows.reshape(-1, *shape))


def levels() -> NDArray[np.float64]:
    """Patients: sex; age, blood pressure and a serum in five levels each, by how many lie below; and a real value."""
    table = load_diabetes(scaled=False).data
    five = [np.searchsorted(np.quantile(of, (0.2, 0.4, 0.6, 0.8)), of) for of in table[:, [0, 3, 9]].T]
    return np.asarray(np.column_stack((table[:, 1], *five, table[:, 2])), np.float64)


def digits() -> NDArray[np.uint8]:
    """Handwritten digits, 8×8."""
    return np.asarray(load_digits().images[:ROWS], np.uint8)


LEVELS = [
    {"columns": [4], "family": "normal"},
    {"columns": [3, 1], "family": "ordinal", "lowest": 0, "highest": 4},
    {"columns": [0], "family": "categorical", "name": "sex"},
    {"columns": [2], "family": "categorical", "lowest": 0, "highest": 4, "name": "pressure"},
]
RESIDUAL = {"encoder": {"kind": "residual", "sizes": [4, 8], "dense": 16, "blocks": 2}}
RESIDUAL |= {"decoder": {"kind": "residual", "sizes": [8, 4], "dense": 16}}
WINDOWS = {"encoder": {"kind": "residual1d", "sizes": [6], "dense": 12}}
WINDOWS |= {"decoder": {"kind": "conv1d", "sizes": [7], "dense": 12}}
EMBEDDED = {"encoder": {"kind": "mlp", "sizes": [16], "embedding": 3}, "decoder": {"kind": "mlp", "sizes": [16]}}
CASES: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
    "pictures": (digits(), {**RESIDUAL, "likelihood": {"family": "discretised_logistic"}}),
    "channels": (eeg(4, 12), {**WINDOWS, "likelihood": {"family": "student_t"}, "missing": {}}),
    "length": (eeg(20), {**WINDOWS, "likelihood": {"family": "normal", "scale": "shared"}}),
    "levels": (levels(), {**EMBEDDED, "likelihood": {"family": "mixed", "blocks": LEVELS}, "missing": {}}),
}


def run(name: str, scratch: Path, **changes: Any) -> Run:
    """A case's run, whose rows are written to a file."""
    rows, parts = CASES[name]
    np.save(scratch / "rows.npy", rows)
    plain = {
        "name": "a-case",
        "data": {"name": "file", "path": str(scratch / "rows.npy"), "source": "a test"},
        "latent_size": 3,
        "optimiser": {"lr": 0.01, "epochs": 4, "batch_size": 16},
    }
    return config.check({**plain, **parts, **changes}, "a test")


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_fitted_and_keeps_its_promises(name: str, tmp_path: Path) -> None:
    """The held-out bound rises; the graph with both networks holds to float64, and a row's bits depend on no batch."""
    fitted = fit.fit(run(name, tmp_path), tmp_path / "run")
    assert fit.held_out(fitted.figures[-1]) > fit.held_out(fitted.figures[0])
    blocks = [module for module in fitted.vae.modules() if isinstance(module, Block)]
    assert all(block.gain != 0 for block in blocks)
    assert bool(blocks) == (name != "levels")
    bound = exported(fitted)
    x = np.resize(fitted.data.splits["fit"], (300, *fitted.data.event_shape))
    if fitted.run.missing:
        x[::2].reshape(150, -1)[:, ::3] = np.nan
    bank = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    independence.check(bound.graph, bound.run, {"x": x, "noise": bank})
    assert exporting.measure({"elbo": bound}, fitted)


def exported(fitted: Fitted) -> Exported:
    """The bound's graph, beside what it must agree with."""
    graph = artifact.graphs(fitted.vae.likelihood.parameter_names, fitted.vae.form)["elbo"]
    example = {"x": torch.from_numpy(fitted.data.splits["fit"][:3]), "noise": torch.randn(2, 3)}
    content = graphs.export("elbo", graphs.modules(fitted.vae)["elbo"], example, tuple(graph.outputs))
    exact = exporting.doubled(fitted)
    return Exported(graph, content, exporting.session(content), graphs.modules(exact)["elbo"], exact)


def test_fresh_residual_blocks_do_nothing(tmp_path: Path) -> None:
    """Whatever their weights are, until their gains move."""
    wanted = run("pictures", tmp_path)
    dataset = data.of(wanted)
    fresh, x = vae.build(wanted, dataset), torch.from_numpy(dataset.splits["fit"][:5])
    before = fresh.posterior(x).moments()[0]
    blocks = [module for module in fresh.modules() if isinstance(module, Block)]
    assert len(blocks) == 6  # two at each of the encoder's sizes, one at each of the decoder's
    with torch.no_grad():
        for block in blocks:
            block.first.weight.normal_()
            block.second.weight.normal_()
        assert torch.equal(fresh.posterior(x).moments()[0], before)
        for block in blocks:
            block.gain.fill_(1.0)
        assert not torch.equal(fresh.posterior(x).moments()[0], before)


def test_windows_have_their_channels_first() -> None:
    """A network that is given (channels, length) looks along the length: a shift of a window shifts what it sees."""
    wanted = config.Conv(kind="conv1d", sizes=[5], dense=8)
    first = Encoder(wanted, (3, 24), 2).body[:2]
    x = torch.randn(2, 3, 24)
    seen, shifted = first(x.flatten(1)), first(torch.roll(x, 2, -1).flatten(1))
    assert seen.shape == (2, 5, 12)
    assert torch.allclose(seen[..., 1:-2], shifted[..., 2:-1], atol=1e-6)


def test_a_level_is_a_vector_in_its_place() -> None:
    """Each column's own, to the bit; numbers stay as they are, and so does what a missing level is given by."""
    torch.manual_seed(0)
    embedded = Embedded(2 + 2 * 3 + 1 + 4, [OneHot(2, 2, 3), OneHot(9, 1, 4)], 5)
    assert embedded.width == 2 + 2 * 5 + 1 + 5
    codes = torch.tensor([[0, 2, 3], [1, 1, 0]])
    ones = [torch.nn.functional.one_hot(codes[:, i], count).float() for i, count in ((0, 3), (1, 3), (2, 4))]
    numbers = torch.randn(2, 3)
    found = embedded(torch.cat((numbers[:, :2], ones[0], ones[1], numbers[:, 2:], ones[2]), -1))
    pair, four = (vectors.detach() for vectors in embedded.vectors)
    wanted = (numbers[:, :2], pair[0][codes[:, 0]], pair[1][codes[:, 1]], numbers[:, 2:], four[0][codes[:, 2]])
    assert torch.equal(found, torch.cat(wanted, -1))


def test_an_encoder_without_an_embedding_is_as_it_was(tmp_path: Path) -> None:
    """Ordinal columns are numbers to it, categorical ones are ones and zeros."""
    plain, embedded = (
        run("levels", tmp_path, missing=None, encoder={"kind": "mlp", "sizes": [16], **more})
        for more in ({}, {"embedding": 3})
    )
    dataset = data.of(plain)
    x = torch.from_numpy(dataset.splits["fit"])
    numbers, ones = (vae.build(wanted, dataset).encoded(x) for wanted in (plain, embedded))
    assert numbers.shape[1] == 1 + 2 + 2 + 5
    assert ones.shape[1] == 1 + 2 * 5 + 2 + 5
    assert torch.equal(numbers[:, 1], x[:, 3].float() / 2 - 1)
    assert torch.equal(ones[:, 1:6].argmax(1), x[:, 3].long())
    assert torch.equal(numbers[:, 3:], ones[:, 11:])


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("pictures", {"encoder": {"kind": "residual", "sizes": [4, 4, 4, 4], "dense": 8}}, "divide by 16, not 8×8"),
        ("length", {"encoder": {"kind": "conv1d", "sizes": [4, 4, 4], "dense": 8}}, "length divides by 8, not 20"),
        ("levels", {"decoder": {"kind": "conv1d", "sizes": [4], "dense": 8}}, "of a mixed table .* say kind: mlp"),
        ("length", {"decoder": {"kind": "residual", "sizes": [4], "dense": 8}}, "a picture whose sides"),
        ("pictures", {"encoder": RESIDUAL["encoder"], "likelihood": {"family": "categorical"}}, "use an mlp"),
        ("channels", {"encoder": EMBEDDED["encoder"], "decoder": EMBEDDED["decoder"]}, "no column is categorical"),
    ],
)
def test_a_network_that_does_not_go_with_its_rows_is_refused(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """In one line that says what would."""
    wanted = run(name, tmp_path, **changes)
    with pytest.raises(Unusable, match=said):
        vae.build(wanted, data.of(wanted))


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (eeg(4, 16), "conv1d"),
        (eeg(16), "mlp"),
        (digits(), "conv"),
        (np.random.default_rng(0).normal(size=(ROWS, 8, 8)), "conv"),
        (np.tile(digits(), (1, 4, 4)), "residual"),
        (np.tile(digits(), (1, 1, 5))[:, :2], "mlp"),
    ],
)
def test_the_config_that_is_shown_has_networks_for_its_rows(rows: NDArray[Any], kind: str, tmp_path: Path) -> None:
    """Long windows, pictures small and large, and what may be a table; what is shown can be built."""
    np.save(tmp_path / "rows.npy", rows)
    shown = config.check(look.look(tmp_path / "rows.npy").run, "shown")
    assert (shown.encoder.kind, shown.decoder.kind) == (kind, kind)
    assert vae.build(shown, data.of(shown))


def test_a_decoder_has_no_embedding(tmp_path: Path) -> None:
    """It is given latents, which have no levels."""
    with pytest.raises(Unusable, match=r"decoder\.mlp\.embedding"):
        run("levels", tmp_path, decoder=EMBEDDED["encoder"])
