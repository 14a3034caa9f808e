"""The comparison: what differs between two artifacts, by their manifests. Knows no graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.artifact import Manifest

SHOWN = 12  # digits of a digest that a person compares
# Parts of a manifest, in the order in which a person asks for them; what is in none comes first.
PARTS = {
    "held-out figures": "training.held_out.",
    "data": "training.splits.",
    "training": "training.",
    "calibration": "calibration.",
    "parity": "parity.",
    "golden rows": "golden.",
    "files": "files.",
}
FIRST = "what it is"


def compare(one: Manifest, other: Manifest) -> Iterator[str]:
    """A line for each difference, under the part that it is of; nothing where the manifests say the same."""
    before, after = flat(_facts(one)), flat(_facts(other))
    found: dict[str, list[str]] = {part: [] for part in (FIRST, *PARTS)}
    for key in [*before, *(key for key in after if key not in before)]:
        if before.get(key) != after.get(key):
            part = next((part for part, prefix in PARTS.items() if key.startswith(prefix)), FIRST)
            found[part].append(_line(key.removeprefix(PARTS.get(part, "")), before.get(key), after.get(key)))
    for part, lines in found.items():
        if lines:
            yield f"{part}:"
            yield from (f"  {line}" for line in lines)


def _facts(manifest: Manifest) -> dict[str, Any]:
    """A manifest's facts; a file is its digest and size in one, since they differ together."""
    facts = manifest.model_dump(mode="json", exclude={"name", "version", "format"})
    facts["files"] = {name: f"{_digest(file.sha256)}, {file.bytes} bytes" for name, file in manifest.files.items()}
    for split in facts["training"]["splits"].values():
        split["sha256"] = _digest(split["sha256"])
    return facts


def flat(facts: Any, prefix: str = "") -> dict[str, Any]:
    """Nested facts by their paths.

    >>> flat({"a": {"b": 1, "c": [2, 3]}, "d": {}, "e": [{"f": 4}]})
    {'a.b': 1, 'a.c': [2, 3], 'd': {}, 'e.0.f': 4}
    """
    if isinstance(facts, list) and any(isinstance(value, Mapping) for value in facts):
        facts = dict(enumerate(facts))
    if isinstance(facts, Mapping) and facts:
        found: dict[str, Any] = {}
        for key, value in facts.items():
            found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: facts}


def _line(key: str, before: Any, after: Any) -> str:
    """One difference; of numbers also how large it is.

    >>> _line("elbo", -21.5, -21.25), _line("seed", None, 3), _line("data", "a", "b")
    ('elbo: -21.5 → -21.25 (+0.25)', 'seed: nothing → 3', 'data: a → b')
    """
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after))
    change = f" ({after - before:+.6g})" if numbers else ""
    return f"{key}: {_said(before)} → {_said(after)}{change}"


def _said(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return f"{value:.8g}"
    text = str(value)
    return _digest(text) if len(text) == 64 and text.isalnum() else text


def _digest(text: str) -> str:
    return f"{text[:SHOWN]}…"
