"""Files: an encoder and a decoder in ONNX files from anywhere → two modules that `assembly` takes. Knows no likelihood.

Names and shapes are found where they can be, and asked for where they can't.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, version_converter

from training import composed, likelihoods
from training.composed import Composed
from training.config import Unusable
from training.graphs import OPSET
from training.own import assembly, given, look
from training.own import rows as own_rows
from training.own.given import EncoderGives
from training.own.prior import Said

MEAN = re.compile(r"(^|[_./])(z_)?(mean|means|mu|loc|location)($|[_./0-9])")
SPREADS: tuple[tuple[EncoderGives, re.Pattern[str]], ...] = (
    ("log_variance", re.compile(r"(log|ln)_?(var|variance|sigma_?sq|sigma2)")),
    ("log_scale", re.compile(r"(log|ln)_?(scale|std|sigma|stddev)")),
    ("variance", re.compile(r"(^|[_./])(var|variance)")),
    ("scale", re.compile(r"(^|[_./])(scale|std|stddev|sigma)")),
)
CLOSE = 1e-4  # what conversion to our opset may change, of the largest value


@dataclass(frozen=True, slots=True)
class Found:
    """A graph's input, what it is to be given for a row, and its outputs by name."""

    model: onnx.ModelProto
    entry: str
    shape: tuple[int | None, ...]
    outputs: tuple[str, ...]


def export(
    encoder_file: Path,
    decoder_file: Path,
    *,
    likelihood: str,
    sample: Path,
    encoder_gives: str | None = None,
    encoder_outputs: Sequence[str] = (),
    decoder_gives: str = "parameters",
    decoder_outputs: Sequence[str] = (),
    units: Mapping[str, float] | None = None,
    **others: Any,
) -> Path:
    """Export two files as an artifact; the folder. What isn't said here is as in `assembly.export`."""
    rows = own_rows.dataset(own_rows.sample(sample))
    family = likelihoods.build(given.family(likelihood), rows)
    first, gives = encoder(encoder_file, rows.event_shape, encoder_outputs, given.encoder_gives(encoder_gives))
    size = sum(map(math.prod, first.outputs[:1]))
    said = given.decoder_gives(decoder_gives)
    wanted = ("mean",) if said == "mean" else family.parameter_names
    return assembly.export(
        encoder=first,
        decoder=decoder(decoder_file, size, wanted, decoder_outputs),
        likelihood=likelihood,
        sample=rows.splits,
        encoder_gives=gives,
        decoder_gives=said,
        preprocessing=units,
        **others,
    )


def prior(path: Path | None) -> Said:
    """What a prior is made of, from the arrays of an .npz; a standard normal where there is none."""
    if path is None:
        return "standard_normal"
    arrays = own_rows.sample(path)
    if not isinstance(arrays, Mapping):
        raise Unusable(f"{path}: an .npz of mean, scale and weight is needed, or of rows")
    said: dict[str, Any] = {str(name): value for name, value in arrays.items()}
    return {"kind": "vamp" if "rows" in said else "mixture", **said}


def names(said: str) -> tuple[str, ...]:
    """Names with commas between, or those in a file, one a line or with commas between."""
    try:
        file = bool(said) and Path(said).is_file()
    except OSError:  # a list too long to be a file's name
        file = False
    try:
        written = Path(said).read_text("utf-8-sig") if file else said
    except UnicodeDecodeError as error:
        raise Unusable(f"{said}: names of features are UTF-8 text") from error
    return tuple(name.strip() for name in re.split(r"[,\n]", written) if name.strip())


def encoder(
    path: Path, event_shape: tuple[int, ...], outputs: Sequence[str] = (), gives: EncoderGives | None = None
) -> tuple[Composed, EncoderGives]:
    """The encoder, and what its second output is."""
    found = _found(path)
    chosen = _named(path, found, outputs, 2) or _mean_and_spread(path, found)
    said = gives or _spread(path, chosen[1])
    return _composed("encoder", path, found, event_shape, chosen), said


def decoder(path: Path, latent_size: int, wanted: Sequence[str], outputs: Sequence[str] = ()) -> Composed:
    """The decoder; wanted: what its family needs, in order."""
    found = _found(path)
    chosen = _named(path, found, outputs, len(wanted))
    if not chosen and set(wanted) <= set(found.outputs):
        chosen = tuple(wanted)
    if not chosen and len(found.outputs) != len(wanted):
        raise Unusable(
            f"{path}: gives {', '.join(found.outputs)}; say which of these are {', '.join(wanted)}, in that order, by "
            "--decoder-outputs" + ("; of a lone mean, --decoder-gives mean" if len(found.outputs) == 1 else "")
        )
    return _composed("decoder", path, found, (latent_size,), chosen or found.outputs)


def _found(path: Path) -> Found:
    """What a file holds, once it has been looked at."""
    model = look.read(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise Unusable(
            f"{path}: has {len(inputs)} inputs ({names}), and one is needed: x of an encoder, z of a decoder"
        )
    (value,) = inputs
    kind = value.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(kind)
        raise Unusable(f"{path}: {value.name} is {name}, and FLOAT is needed; export it in float32")
    dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
    if len(dims) < 2 or dims[0] is not None:
        raise Unusable(
            f"{path}: {value.name} has the shape {dims}, and (rows, …) with any number of rows is needed; export it "
            "with a dynamic first axis (dynamic_shapes or dynamic_axes)"
        )
    return Found(model, value.name, tuple(dims[1:]), tuple(output.name for output in model.graph.output))


def _named(path: Path, found: Found, names: Sequence[str], wanted: int) -> tuple[str, ...]:
    """The outputs that were asked for by name; none if none were."""
    if names and (len(names) != wanted or set(names) - set(found.outputs)):
        raise Unusable(f"{path}: {wanted} of its outputs are needed, which are {', '.join(found.outputs)}")
    return tuple(names)


def _mean_and_spread(path: Path, found: Found) -> tuple[str, ...]:
    """The outputs whose names say that they are a mean and how far q spreads, or the only two."""
    means = [name for name in found.outputs if MEAN.search(name.lower())]
    spreads = [name for name in found.outputs if any(pattern.search(name.lower()) for _, pattern in SPREADS)]
    if len(means) == len(spreads) == 1 and means != spreads:
        return means[0], spreads[0]
    if len(found.outputs) == 2 and not means and not spreads:
        return found.outputs
    raise Unusable(
        f"{path}: gives {', '.join(found.outputs)}; say which are the mean and the log variance (or what "
        "--encoder-gives says), in that order, by --encoder-outputs"
    )


def _spread(path: Path, name: str) -> EncoderGives:
    """What a second output is, by its name."""
    for gives, pattern in SPREADS:
        if pattern.search(name.lower()):
            return gives
    raise Unusable(f"{path}: is {name} a log_variance, a log_scale, a variance or a scale? Say so by --encoder-gives")


def _composed(role: str, path: Path, found: Found, row: tuple[int, ...], outputs: tuple[str, ...]) -> Composed:
    """The graph in our opset, held to itself, with its outputs' shapes as they come out."""
    shape = row if any(size is None for size in found.shape) else tuple(size or 0 for size in found.shape)
    if math.prod(shape) != math.prod(row) or len(shape) != len(found.shape):
        raise Unusable(
            f"{path}: {found.entry} is {['n', *(size or '?' for size in found.shape)]}, and a row is {list(row)}"
        )
    ours = composed.prepared(_in_our_opset(path, found.model), found.entry, shape, outputs)
    theirs = composed.prepared(found.model, found.entry, shape, outputs)
    rows = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    each = [_run(path, composed.prepared(found.model, found.entry, shape, (name,)), rows) for name in outputs]
    whole, again = _run(path, theirs, rows), _run(path, ours, rows)
    if not np.abs(whole - again).max(initial=0.0) <= CLOSE * max(1.0, np.abs(whole).max(initial=0.0)):
        raise Unusable(f"{path}: gives other numbers in opset {OPSET}; export it again with opset_version={OPSET}")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    producer = f"{found.model.producer_name} {found.model.producer_version}".strip() or "an unnamed program"
    shapes = tuple(_row_shape(path, found.model, name, len(part[0])) for name, part in zip(outputs, each, strict=True))
    return Composed(role, ours, shape, shapes, f"{role}: ONNX of {producer}, sha256 {content}")


def _row_shape(path: Path, model: onnx.ModelProto, name: str, width: int) -> tuple[int, ...]:
    """An output's shape for one row: as it is declared, if that is whole, and flat otherwise."""
    value = next(output for output in model.graph.output if output.name == name)
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise Unusable(f"{path}: {name} is not FLOAT; export it in float32")
    dims = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]
    return dims if dims and 0 not in dims and math.prod(dims) == width else (width,)


def _run(
    path: Path, model: onnx.ModelProto, rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What the runtime makes of rows."""
    try:
        (found,) = composed.session(model.SerializeToString()).run(None, {composed.INPUT: rows})
    except Exception as error:  # the runtime's own classes are private
        raise Unusable(f"{path}: fails on {list(rows.shape)}: {' '.join(str(error).split())[:300]}") from error
    return np.asarray(found, np.float32)


def _in_our_opset(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the opset of our graphs."""
    version = next((opset.version for opset in model.opset_import if opset.domain in look.STANDARD), OPSET)
    if version == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # a RuntimeError of C++, or one of its own
        why = " ".join(str(error).split())[:200]
        raise Unusable(
            f"{path}: is of opset {version}, which can't be made opset {OPSET} ({why}); export it again with "
            f"opset_version={OPSET}"
        ) from error
