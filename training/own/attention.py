"""Attention: torch's fused operation written out as products and a softmax. Knows no module and no graph's purpose.

The fused one has a dropout in it, so it counts as random even where that drops nothing, and the runtime has no such
operation of its own in our opset.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

FUSED = torch.ops.aten.scaled_dot_product_attention.default


def settled(node: fx.Node) -> bool:
    """Whether a node is attention that drops nothing."""
    return node.target is FUSED and not (node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0))


def written_out(graph: fx.Graph) -> None:
    """Put `attention` in the place of every node that is settled."""
    for node in graph.nodes:
        if settled(node):
            node.target = attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001  torch's signature; it is 0
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query keyᵀ · scale + mask) value, over the last two axes, (…, to, size), (…, from, size) and the same.

    As torch.nn.functional.scaled_dot_product_attention says it. A mask is of booleans (what may be seen) or is added.
    """
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
    scores = query @ key.transpose(-1, -2) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        seen = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if seen else scores + attn_mask
        blind = (scores == -math.inf).all(-1, keepdim=True)  # sees nothing, and gives 0
        return torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0) @ value
    return torch.softmax(scores, -1) @ value
