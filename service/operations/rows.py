"""Rows: what a caller sent, checked before it queues, so that a bad row never reaches its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.artifact import Array, Manifest, Support
from service.errors import Fault, Invalid, invalid
from service.operations.errand import off_loop

Reason = Callable[[tuple[int, ...]], str]


async def admitted(inputs: Array, manifest: Manifest) -> Array:
    """Rows as the graphs take them; see `admit`, which is done off the event loop where the rows are many."""
    return await off_loop(inputs.size, lambda: admit(inputs, manifest))


def admit(inputs: Array, manifest: Manifest, pointer: str = "/inputs") -> Array:
    """Rows as the graphs take them, C-ordered and of the event's dtype; Invalid says which value is wrong and why.

    NaN is a missing value, taken where the model was trained for it.
    Fractions are rounded to a float event's precision; anything else must be exact in the event's dtype.
    """
    shape = tuple(manifest.event_shape)
    if inputs.dtype.kind not in "iuf":
        raise invalid(pointer, f"holds {inputs.dtype} where numbers are wanted")
    if inputs.shape[1:] != shape:
        raise invalid(pointer, f"has shape {_shape(inputs.shape)}; {manifest.name} takes {_shape(('n', *shape))}")
    if len(inputs) == 0:
        raise invalid(pointer, "holds 0 rows; send at least one")
    x = _plainly(inputs, manifest)
    return _scrutinised(inputs, manifest, pointer) if x is None else x


# Values up to this are whole in every float that an event may have, and finite whatever is cast to what.
PLAIN = 2.0**24
GLANCE = 32_768  # numbers that are looked at together: what is made of them stays in the cache


def _plainly(inputs: Array, manifest: Manifest) -> Array | None:
    """Rows that are right at first sight, as nearly all are: a few passes over them in place of a dozen.

    None where it takes a closer look: a value that is missing or out of the ordinary, or a family for each column.
    """
    support = manifest.support
    if support.kind not in ("levels", "real") or manifest.blocks is not None:
        return None
    if support.kind == "levels" and (support.levels[2] != 1 or support.levels[0] % 1):
        return None
    low, high = support.bounds
    low, high = max(low, -PLAIN), min(high, PLAIN)
    whole = inputs.dtype.kind == "f" and (support.kind == "levels" or manifest.event_dtype[0] in "iu")
    bits = support.kind == "levels" and (low, high) == (0.0, 1.0)
    flat = inputs.reshape(-1)
    for start in range(0, flat.size, GLANCE):
        part = flat[start : start + GLANCE]
        if bits:
            if not ((part == 0) | (part == 1)).all():
                return None
            continue
        if not (part.min() >= low and part.max() <= high):  # false for NaN
            return None
        if whole and not _same(np.floor(part), part):
            return None
    return np.ascontiguousarray(inputs, manifest.event_dtype)


def _same(found: Array, wanted: Array) -> bool:
    return bool((found == wanted).all())


def _scrutinised(inputs: Array, manifest: Manifest, pointer: str) -> Array:
    """Rows as the graphs take them, looked at value by value."""
    absent = np.isnan(inputs)
    if manifest.missing:
        _refuse(inputs, np.isinf(inputs), pointer, "is not a finite number")
    else:
        reason = f"is not a finite number{_untrained(manifest) if absent.any() else ''}"
        _refuse(inputs, ~np.isfinite(inputs), pointer, reason)
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.ascontiguousarray(inputs, dtype=manifest.event_dtype)
    if x.dtype.kind == "f":
        _refuse(inputs, np.isinf(x), pointer, f"is past the range of {x.dtype}")
        if inputs.dtype.kind in "iu":
            _refuse(inputs, _moved(inputs, x), pointer, f"can't be held exactly by {x.dtype}")
    else:
        _refuse(inputs, x != inputs, pointer, _off_support(manifest.support))
    _check_support(x, manifest, pointer)
    return x


def observed(x: Array, manifest: Manifest) -> int | NDArray[np.int64]:
    """How many values of each row are there; (rows,), or one number where none can be missing."""
    if not manifest.missing:
        return manifest.dimensions
    return np.asarray(np.isfinite(x).reshape(len(x), manifest.dimensions).sum(1), np.int64)


def _untrained(manifest: Manifest) -> str:
    return f", and {manifest.name} was not trained for missing values"


def _moved(whole: Array, x: Array) -> Array:
    """Where an integer's float is another number; one rounded up to past the integer's range has no way back."""
    with np.errstate(invalid="ignore"):
        return np.asarray((x >= float(np.iinfo(whole.dtype).max) + 1.0) | (x.astype(whole.dtype) != whole))


def _check_support(x: Array, manifest: Manifest, pointer: str) -> None:
    """Refuse values that the likelihood gives no mass or density to; in a mixed table, each column by its block."""
    if manifest.blocks is None:
        return _refuse(x, manifest.support.off(x), pointer, _off_support(manifest.support))
    wrong = np.zeros(x.shape, np.bool_)
    reasons = [""] * x.shape[1]
    for block in manifest.blocks:
        wrong[:, block.columns] = block.support.off(x[:, block.columns])
        for column in block.columns:
            reasons[column] = _off_support(block.support) + _named(manifest, column)
    return _refuse(x, wrong, pointer, lambda place: reasons[place[1]])


def _off_support(support: Support) -> str:
    if support.kind == "real":
        return "is not a whole number"
    return f"is off the likelihood's support: {support.words}"


def _named(manifest: Manifest, column: int) -> str:
    """Which column that is, where columns have names."""
    if not manifest.features:
        return ""
    feature = manifest.features[column]
    return f" in the column {feature.name}{_codes(feature.categories or ())}"


def _codes(categories: tuple[str, ...], most: int = 8) -> str:
    """What codes stand for.

    >>> _codes(("red", "green"))
    ', which stand for 0 red, 1 green'
    """
    if not categories:
        return ""
    more = f" and {len(categories) - most} more" if len(categories) > most else ""
    return ", which stand for " + ", ".join(f"{i} {name}" for i, name in enumerate(categories[:most])) + more


def admit_latents(latents: Array, manifest: Manifest) -> Array:
    """Latents as the decoder takes them: (rows, d) float32."""
    if latents.dtype.kind not in "iuf":
        raise invalid("/latents", f"holds {latents.dtype} where numbers are wanted")
    if latents.ndim != 2 or latents.shape[1] != manifest.latent_size:
        raise invalid(
            "/latents",
            f"has shape {_shape(latents.shape)}; {manifest.name} takes {_shape(('n', manifest.latent_size))}",
        )
    if len(latents) == 0:
        raise invalid("/latents", "holds 0 rows; send at least one")
    _refuse(latents, ~np.isfinite(latents), "/latents", "is not a finite number")
    with np.errstate(over="ignore"):
        z = np.ascontiguousarray(latents, np.float32)
    _refuse(latents, ~np.isfinite(z), "/latents", "is past the range of float32")
    return z


def _refuse(values: Array, wrong: Array, pointer: str, reason: str | Reason, most: int = 8) -> None:
    """Raise Invalid with the first wrong values, each by its place; the reason may depend on that."""
    if not wrong.any():
        return
    places = np.argwhere(wrong)
    why = reason if callable(reason) else lambda _: reason
    faults = [
        Fault("/".join([pointer, *map(str, place)]), f"{_shown(values[tuple(place)])} {why(tuple(place))}")
        for place in places[:most]
    ]
    if len(places) > most:
        faults.append(Fault(pointer, f"and {len(places) - most} more values like these"))
    raise Invalid(*faults)


def _shape(shape: tuple[object, ...]) -> str:
    """A shape as people write it.

    >>> _shape(("n", 28, 28))
    '[n, 28, 28]'
    """
    return f"[{', '.join(map(str, shape))}]"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, np.floating | float) else str(value)
