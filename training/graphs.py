"""Graphs: a VAE as the ONNX graphs of an artifact, as bytes. Knows no tolerance and no folder.

Each module's inputs and outputs are those of `service.artifact.graphs`. Noise is an input; nothing here is random.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from service import artifact
from training import blocks, composed
from training.likelihoods import total
from training.vae import VAE

OPSET = 20
Outputs = tuple[Tensor, ...]


class EncoderGraph(nn.Module):
    """x → q(z|x)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Outputs:
        """mean, log_scale (n, d)."""
        return self.vae.posterior(x).moments()


class DecoderGraph(nn.Module):
    """z → p(x|z)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Outputs:
        """mean, (n, *event), and the family's parameters, each of its own shape."""
        likelihood = self.vae.likelihood
        parameters = self.vae.parameters_at(z)
        mean = likelihood.mean(parameters)
        outputs = [mean.reshape(z.shape[0], *self.vae.event_shape)]
        for name in likelihood.parameter_names:
            flat = likelihood.parameter_shape(name, tuple(mean.shape[1:]))
            shape = likelihood.parameter_shape(name, self.vae.event_shape)
            outputs.append(parameters[name].expand(z.shape[0], *flat).reshape(z.shape[0], *shape))
        return tuple(outputs)


class ElboGraph(nn.Module):
    """x and a noise bank → the terms of the bound, one pass."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, noise: Tensor) -> Outputs:
        """log_likelihood (n, k); log_weight = log p(x, z)/q(z|x) (n, k); kl (n,), where it has a closed form."""
        q = self.vae.posterior(x)
        z, log_q = q.drawn(noise.to(self.vae.dtype))
        log_likelihood = self.vae.log_likelihood(x, z)
        kl = self.vae.kl(q)
        log_weight = log_likelihood + (self.vae.log_prior(z) - log_q)
        return (log_likelihood, log_weight) if kl is None else (log_likelihood, log_weight, total(kl))


class JointGraph(nn.Module):
    """log p(x, z) at any z."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, z: Tensor) -> Outputs:
        """log_likelihood, log_prior (n, k)."""
        return self.vae.log_likelihood(x, z), self.vae.log_prior(z)


class TermsGraph(nn.Module):
    """The bound's terms, number by number and latent by latent."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, noise: Tensor) -> Outputs:
        """feature_log_likelihood (n, k, *event); latent_kl (n, d), where the KL has a closed form."""
        q = self.vae.posterior(x)
        terms = self.vae.feature_log_likelihood(x, q.draws(noise.to(self.vae.dtype)))
        terms = terms.reshape(x.shape[0], noise.shape[0], *self.vae.event_shape)
        kl = self.vae.kl(q)
        return (terms,) if kl is None else (terms, kl)


class PosteriorGraph(nn.Module):
    """Noise → draws from q(z|x)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, epsilon: Tensor) -> Outputs:
        """z (n, k, d), log_density = log q(z|x) (n, k)."""
        return self.vae.posterior(x).drawn(epsilon.to(self.vae.dtype))


class PriorGraph(nn.Module):
    """Noise → draws from p(z)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, epsilon: Tensor, uniform: Tensor | None = None) -> Outputs:
        """z (n, d)."""
        chosen = torch.zeros_like(epsilon[:, 0]) if uniform is None else uniform
        return (self.vae.prior.draws(epsilon.to(self.vae.dtype), chosen),)


MODULES: Mapping[str, type[nn.Module]] = {
    "encoder": EncoderGraph,
    "decoder": DecoderGraph,
    "elbo": ElboGraph,
    "joint": JointGraph,
    "terms": TermsGraph,
    "posterior": PosteriorGraph,
    "prior": PriorGraph,
}


def modules(vae: VAE) -> dict[str, nn.Module]:
    """The graphs as torch modules, by name."""
    names = artifact.graphs(vae.likelihood.parameter_names, vae.form)
    return {name: MODULES[name](vae).eval() for name in names}


def export(name: str, module: nn.Module, example: Mapping[str, Tensor], outputs: tuple[str, ...]) -> bytes:
    """A module as ONNX, leading axes dynamic, nothing of this machine in it. example: two or more rows and draws."""
    n, k = Dim("n", min=0), Dim("k", min=0)
    axes: dict[str, dict[int, Any]] = {
        "x": {0: n},
        "z": {0: n, 1: k} if name == "joint" else {0: n},
        "noise": {0: k},
        "epsilon": {0: n, 1: k} if name == "posterior" else {0: n},
        "uniform": {0: n},
    }
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(example.values()),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=tuple(axes[key] for key in example),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        program.save(path, external_data=False)
        return stripped(blocks.filled_up(composed.spliced(onnx.load(path), module)), name)


def stripped(model: onnx.ModelProto, name: str) -> bytes:
    """The graph without notes on where it came from, checked."""
    model.graph.name, model.doc_string, model.producer_version = name, "", ""
    del model.metadata_props[:]
    _strip(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            _strip_node(node)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _strip(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    del node.metadata_props[:]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            _strip(attribute.g)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter without its talk."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
