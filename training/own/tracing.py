"""Tracing: somebody's module → the same as a traced program, or the reason why it can't be one, with the fix.

Refused: what is random, what depends on the values in it or on how many rows come together, and what is still being
trained. Knows no likelihood and no artifact.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from training.composed import Composed
from training.config import Unusable
from training.own import attention

Outputs = tuple[Tensor, ...]
FAR = 1e-3  # of a row's largest |value|: rounding is far below, and neighbours that matter are far above
# Only the shape of what they are given changes, so an elementwise function may as well come after.
RESHAPING = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone"}
RESHAPING |= {"permute", "transpose", "alias", "detach", "dropout"}


def traced(role: str, module: nn.Module, example: Tensor, others: Tensor) -> nn.Module:
    """The module as a program of tensor operations alone, its leading axis dynamic. Unusable with the reason.

    example, others: five or more rows each; the program is made from the former and held to the module on both.
    """
    settled(role, module)
    found = looked(role, module, example)
    for value in found:
        if value.dtype != example.dtype:
            raise Unusable(
                f"{role}: gives {value.dtype} where {example.dtype} goes in; a cast in its forward does that (.half(), "
                ".double(), autocast): take it out. What is computed in, the export decides"
            )
    if any(isinstance(part, Composed) for part in module.modules()):  # a graph already
        looked(role, module, others)
        return module
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            program = torch.export.export(module, (example[:3],), dynamic_shapes=(({0: Dim("rows", min=0)}),))
        except Exception as error:  # what torch raises here has a dozen classes, some of them private
            raise Unusable(f"{role}: {_why(str(error))}") from error
        noisy(role, program.graph)
        plain = _plain(program.module())
    for rows, wanted in ((example, found), (others, looked(role, module, others))):
        _hold(role, plain, rows, wanted)
    return plain


def _plain(made: fx.GraphModule) -> fx.GraphModule:
    """torch's program as a module like others: it refuses eval(), and guards what `looked` has seen to."""
    for node in [node for node in made.graph.nodes if node.op == "call_module" and "_guards_fn" in str(node.target)]:
        made.graph.erase_node(node)
    attention.written_out(made.graph)
    made.graph.set_codegen(fx.graph.CodeGen())  # one tensor in, a tuple out: there is no tree to unflatten
    return fx.GraphModule(made, made.graph)


def settled(role: str, module: nn.Module) -> None:
    """Refuse a module whose dropout or batch norm is still in training mode."""
    for path, part in module.named_modules():
        name, kind = path.removeprefix("own."), type(part).__name__
        if not part.training:
            continue
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise Unusable(
                f"{role}: {name} ({kind}) is in training mode and drops values at random; call .eval() on it"
            )
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise Unusable(
                f"{role}: {name} ({kind}) is in training mode, where a row's numbers depend on its batch; call .eval()"
            )


def looked(role: str, module: nn.Module, rows: Tensor) -> Outputs:
    """What a module gives, found to be the same twice, and for a row alone as among others; Unusable if it isn't."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been drawn
        whole, again = _run(role, module, rows), _run(role, module, rows)
    if any(not torch.equal(one.nan_to_num(), two.nan_to_num()) for one, two in zip(whole, again, strict=True)):
        raise Unusable(f"{role}: {RANDOM}")
    for few in (rows[:1], rows[:2]):
        _among(role, _run(role, module, few), whole, len(few))
    return whole


RANDOM = (
    "gives other numbers each time it is called. Give the encoder up to its mean and second output, without drawing z, "
    "and the decoder as a function of z; noise is an input of the artifact's graphs"
)


def _run(role: str, module: nn.Module, rows: Tensor) -> Outputs:
    try:
        with torch.no_grad(), _quiet():
            outputs: Outputs = module(rows)
    except Unusable:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        what = "latents" if role == "decoder" else "rows"
        remedy = ", as the sample has them; give the sample the shape that it takes" if role == "encoder" else ""
        raise Unusable(
            f"{role}: fails on {what} of shape {list(rows.shape)}{remedy} ({type(error).__name__}: {said})"
        ) from error
    return outputs


def _among(role: str, few: Outputs, whole: Outputs, rows: int) -> None:
    for alone, among in zip(few, whole, strict=True):
        if alone.dtype != among.dtype:
            raise Unusable(
                f"{role}: its dtype moves with the batch: {alone.dtype} for {rows} rows, {among.dtype} for more"
            )
        if alone.shape != (rows, *among.shape[1:]):
            raise Unusable(
                f"{role}: its shape moves with the batch: {list(alone.shape)} for {rows} rows, and {list(among.shape)} "
                f"for {len(among)}; keep the leading axis (a bare .squeeze() drops it for one row)"
            )
        if _differs(alone, among[:rows]):
            raise Unusable(
                f"{role}: a row's numbers depend on the rows that share its batch. Batch norm belongs in .eval(), and "
                "statistics over the leading axis don't belong in a model that scores rows"
            )


def _differs(one: Tensor, two: Tensor) -> bool:
    """Whether finite numbers differ by more than rounding."""
    one, two = one.double().nan_to_num(), two.double().nan_to_num()
    return bool(((one - two).abs() > FAR * two.abs().amax().clamp(min=1.0)).any())


def noisy(role: str, graph: fx.Graph) -> None:
    """Refuse a program with a random operation, or one that writes to the module's own state."""
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = _name(node)
        training = {
            str(argument.name): node.args[i]
            for i, argument in enumerate(node.target._schema.arguments[: len(node.args)])
        }
        if "norm" in name and training.get("training", training.get("use_input_stats", training.get("train"))) is True:
            raise Unusable(f"{role}: {name} uses the batch's own statistics; call .eval(), which uses the stored ones")
        if "dropout" in name:
            if training.get("train") is True:
                raise Unusable(
                    f"{role}: {name} drops values at random; call .eval(), or hand it training=self.training"
                )
            continue
        if attention.settled(node):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Unusable(f"{role}: draws random numbers ({name}). It {RANDOM}")


def _name(node: fx.Node) -> str:
    """An operation's name: `aten.randn_like.default` is randn_like."""
    return str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)


def _why(said: str) -> str:
    """torch's reason in our words, as far as we know it."""
    first = " ".join(said.split("\n\n")[0].split())[:300]
    if "data-dependent" in said or "data dependent" in said or ".item()" in said or "unbacked" in said.lower():
        return (
            "has a branch or a shape that depends on the values in it, which no graph can have. Use torch.where for "
            f"the former, and masks for the latter ({first})"
        )
    if "numpy" in said:
        return f"leaves torch for numpy, which no graph can follow; say it in torch's own operations ({first})"
    if "Constraints violated" in said or "specialized" in said or "marked" in said:
        return (
            "does something else for other numbers of rows, so what it gives would move with the batch. Take sizes "
            f"from x.shape[0], don't branch on them, and don't leave torch by .tolist() ({first})"
        )
    return f"can't be traced: {first}"


def _hold(role: str, plain: nn.Module, rows: Tensor, wanted: Outputs) -> None:
    """Refuse a program that isn't the module: what Python decided while it was traced is frozen in it."""
    for found, right in zip(_run(role, plain, rows), wanted, strict=True):
        if found.shape != right.shape or _differs(found, right):
            raise Unusable(
                f"{role}: what was traced on some rows gives other numbers than the module on others: Python decides "
                "something in it from values (numpy, .item(), .tolist()); say it in torch, with torch.where"
            )


def without_last(module: nn.Module, names: tuple[str, ...], last_axis: bool = False) -> bool:
    """Take off a last elementwise operation of that name, if there is one before mere changes of shape.

    A sigmoid in float32 is 0 or 1 where its argument isn't infinite; with its argument nothing is lost.
    """
    for part in module.modules():
        if isinstance(part, Composed):
            return part.without_last(tuple(name.capitalize() for name in names), last_axis)
    assert isinstance(module, fx.GraphModule)
    graph = module
    output = next(node for node in graph.graph.nodes if node.op == "output")
    (outputs,) = output.args
    if not isinstance(outputs, tuple | list) or len(outputs) != 1:
        return False
    node = outputs[0]
    while isinstance(node, fx.Node) and node.op == "call_function" and len(node.users) == 1:
        name = _name(node)
        if name in names and (not last_axis or node.args[1] in (-1, node.meta["val"].dim() - 1)):
            argument = node.args[0]
            assert isinstance(argument, fx.Node)
            node.replace_all_uses_with(argument)
            graph.graph.erase_node(node)
            graph.recompile()
            return True
        same = name in ("clone", "contiguous", "alias", "detach") or (name in ("view", "reshape") and _kept_last(node))
        if not (same if last_axis else name in RESHAPING):
            return False
        node = node.args[0]
    return False


def _kept_last(node: fx.Node) -> bool:
    """Whether a change of shape leaves the last axis as it was."""
    before = node.args[0]
    assert isinstance(before, fx.Node)
    return bool(node.meta["val"].shape[-1] == before.meta["val"].shape[-1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch without its talk."""
    root = logging.getLogger("torch")
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
