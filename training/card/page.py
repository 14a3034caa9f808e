"""The page: an artifact's card as Markdown, in the few forms that the service can also show in a browser."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from service.artifact import Artifact, Calibration, Manifest, Support
from training.card.findings import Findings

ALPHAS = (0.1, 0.05, 0.01, 0.001)
FAR_OFF = (
    "**Reconstructions are further from the rows than the mean of all rows is.** Are the rows what the encoder was "
    "trained on? If they were divided by 255 or standardised there, `preprocessing` has to say so."
)


def write(artifact: Artifact, seen: Findings, pictures: Collection[str]) -> str:
    """The whole page; pictures are the names of those that lie beside it."""
    manifest = artifact.manifest
    parts = [
        f"# {manifest.name}, version {manifest.version}",
        _plain(manifest.description or "A variational autoencoder."),
        "This card was written from the artifact itself. No number of it is used in an answer.",
        *_what(manifest),
        *_trained(manifest),
        *_found(manifest, seen),
        *(_shown("card-rows.png", "Rows, what the model makes of them, and rows from the prior", pictures)),
        *(_shown("card-columns.png", "Each column: held-out rows, and rows drawn from the model", pictures)),
        *_calibrated(manifest),
        *(_shown("card-scores.png", "Where the scores of held-out rows lie", pictures)),
        *_latents(manifest, seen),
        *(_shown("card-latents.png", "What each latent carries, and what it changes", pictures)),
        *_checked(manifest),
        *_use(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _what(manifest: Manifest) -> list[str]:
    shape = " × ".join(str(size) for size in manifest.event_shape)
    columns = ", ".join(_plain(f.name + (f" ({f.unit})" if f.unit else "")) for f in manifest.features or [])
    lines = [
        ("a row", f"{shape} of {manifest.event_dtype}" + ("; values may be missing" if manifest.missing else "")),
        ("values", _values(manifest.support) if manifest.blocks is None else "those of each block, below"),
        ("p(x given z)", f"{manifest.family}, {_measure(manifest)}"),
        ("a score is in", manifest.units),
        ("latents", f"{manifest.latent_size}, prior {_words(manifest.prior.family)}"),
        ("posterior", _words(manifest.prior.posterior)),
        ("`mean` is", f"the {manifest.mean} of p(x given z)"),
    ]
    parts = ["## What it is", _table(("", ""), lines)]
    if columns:
        parts.append(f"Columns: {columns}.")
    if manifest.blocks:
        rows = [
            (block.name, block.family, str(len(block.columns)), _values(block.support), _words(block.base_measure))
            for block in manifest.blocks
        ]
        parts.append(_table(("block", "family", "columns", "values", "measure"), rows))
    return parts


def _trained(manifest: Manifest) -> list[str]:
    training = manifest.training
    versions = ", ".join(f"{name} {version}" for name, version in training.versions.items())
    splits = ", ".join(f"{split.rows} for {name}" for name, split in training.splits.items())
    lines = [
        ("data", training.data),
        ("rows", f"{splits}; no row is in two of them"),
        ("objective", training.objective + (f", β = {training.beta:g}" if training.beta != 1 else "")),
        ("epochs", f"{training.epochs}, seed {training.seed}"),
        ("made with", versions),
    ]
    return ["## How it was trained", _table(("", ""), lines), "β is never in a score."]


def _found(manifest: Manifest, seen: Findings) -> list[str]:
    held_out, rows = manifest.training.held_out, manifest.training.splits["test"].rows
    lines = [(_words(name), f"{value:.4g} nats a row") for name, value in held_out.items()]
    if manifest.discrete and "elbo" in held_out and not manifest.missing:
        bits = -held_out["elbo"] / (manifest.dimensions * math.log(2))
        lines.append(("bits per dimension", f"{bits:.4g}, at most: the ELBO is a lower bound"))
    if seen.held_out:
        low, high = (float(edge) for edge in _quantiles(seen))
        lines.append(("ELBO of 9 rows in 10", f"{low:.4g} to {high:.4g} nats"))
    own = seen.held_out and manifest.training.config.get("kind") == "own"
    if own:
        lines.append(("variance explained by E[x|z]", f"{seen.explained:.3g}, of 1"))
    parts = [
        "## On held-out rows",
        f"Means over the {rows} rows of the test split, which no step of training has seen.",
        _table(("", ""), lines),
    ]
    return [*parts, FAR_OFF] if own and seen.explained < 0 else parts


def _quantiles(seen: Findings) -> Iterable[float]:
    import numpy as np

    return [float(edge) for edge in np.quantile(seen.elbo, (0.05, 0.95))]


def _calibrated(manifest: Manifest) -> list[str]:
    facts = manifest.calibration
    if facts is None:
        remedy = "`python -m training calibrate` on this folder gives it p-values."
        return ["## Calibration", f"None: scores come without `p_value` and `anomaly`. {remedy}"]
    why = f": {_plain(facts.anomaly.why)}" if facts.anomaly else ""
    return [
        "## Calibration",
        f"{facts.n} held-out rows, {facts.draws} draws, seed {facts.seed}. The smallest p-value is "
        f"{facts.smallest_p:.3g}: at an α below it nothing is flagged. Anomalies are told by `{facts.chosen}`{why}.",
        _table(("α", "rows flagged at p ≤ α among rows like these", "9 calibrations in 10 have"), _alphas(facts)),
    ]


def _alphas(facts: Calibration) -> list[tuple[str, ...]]:
    """What a calibration of this size supports: the false-alarm rate on average, and as one set of rows has it.

    Given the calibration's rows the rate is Beta(k, n + 1 − k), k = ⌊α(n + 1)⌋ (Vovk 2012).
    """
    from scipy.stats import beta

    lines: list[tuple[str, ...]] = []
    for alpha in ALPHAS:
        place = math.floor(alpha * (facts.n + 1) + 1e-9)
        if place < 1:
            need = math.ceil(1 / alpha) - 1
            lines.append((f"{alpha:g}", f"none: it takes {need:,} calibration rows", ""))
            continue
        low, high = (float(beta.ppf(share, place, facts.n + 1 - place)) for share in (0.05, 0.95))
        lines.append((f"{alpha:g}", f"{place / (facts.n + 1):.2%} on average", f"{low:.2%} to {high:.2%}"))
    return lines


def _latents(manifest: Manifest, seen: Findings) -> list[str]:
    rows = f"{len(seen.elbo)} {'held-out' if seen.held_out else 'golden'} rows"
    count = f"{len(seen.active)} of {manifest.latent_size} latents"
    if seen.latent_kl is None:
        about = (
            "The KL has no closed form here, so it isn't a sum over latents. "
            f"{count} are active: over {rows} their posterior means vary by more than {seen.least:g} of the prior's "
            "variance (the activity of Burda et al. 2016)."
        )
    else:
        about = (
            f"{count} carry more than {seen.least:g} nats a row (KL from the prior, averaged over {rows}); "
            f"{float(seen.of_latents.sum()):.3g} nats in all."
        )
    return ["## Latents", about]


def _checked(manifest: Manifest) -> list[str]:
    worst = max(manifest.parity, key=lambda name: manifest.parity[name].error / (manifest.parity[name].tolerance or 1))
    parity = manifest.parity[worst]
    return [
        "## What was checked when it was written",
        f"Every output against float64: the nearest to its tolerance is `{worst}`, off by {parity.error:.2g} where "
        f"{parity.tolerance:.2g} is allowed. A row's numbers don't depend on its batch: {manifest.row_independence}. "
        f"{manifest.golden.rows} golden rows must be answered before it is served.",
    ]


def _use(manifest: Manifest) -> list[str]:
    url = f"http://127.0.0.1:8000/v1/models/{manifest.name}/versions/{manifest.version}"
    lines = [
        f"curl -s {url}",
        f"curl -s {url}/score -H 'Content-Type: application/x-npy' --data-binary @rows.npy",
        f"curl -s {url}/sample -H 'Content-Type: application/json' -d '{{\"count\": 4}}'",
    ]
    return ["## Use it", "```\n" + "\n".join(lines) + "\n```"]


def _shown(name: str, about: str, pictures: Collection[str]) -> list[str]:
    return [f"![{about}]({name})"] if name in pictures else []


def _measure(manifest: Manifest) -> str:
    said = {
        "counting": "a probability mass",
        "lebesgue": "a density",
        "mixed": "a mass for some columns, a density for others",
    }
    return said[manifest.base_measure]


def _words(name: str) -> str:
    return name.upper() if name in ("elbo", "kl") else name.replace("_", " ")


def _values(support: Support) -> str:
    return support.words.removeprefix("it takes ")


def _table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    rows = [head, ("---",) * len(head), *(tuple(_plain(cell) for cell in line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(words: str) -> str:
    """Words from the manifest on one line, with nothing in them that Markdown or HTML would read."""
    kept = " ".join(words.split())
    for mark in ("\\", "*", "_", "[", "]", "<", ">", "|", "#"):
        kept = kept.replace(mark, "\\" + mark)
    return kept
