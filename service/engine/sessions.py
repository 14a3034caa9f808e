"""Sessions: graphs opened in the runtime, where they were asked to be. Knows no row.

On the CPU every session runs with one thread, since only then is a row's answer the same to the last bit whoever shares
its batch; several cores are used by several lanes.

Weights that an artifact's graphs share lie in memory once: each session borrows them from the bytes that were hashed,
and no file is opened. The runtime's packed copies of matrices, one a session, are left out then, which takes a dense
layer some more time on few rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnxruntime as ort

from service.artifact import WEIGHTS, Graph
from service.engine.memory import ARENAS, CPU, CUDA
from service.engine.onnxfile import onnx_fault
from service.errors import ArtifactRefused, DeviceUnavailable

log = logging.getLogger(__name__)

Algorithms = Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"]
# Nodes that may stay on the CPU under `cuda`: those that make and move shapes, and compute nothing. The runtime tells
# a node's op and not its types, so arithmetic on shapes can't be told from arithmetic on rows: no committed graph has
# any, and one that had would be refused. What is left open: these ops moving rows, not shapes, on the CPU.
SHAPE_OPS = {
    *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Range", "Reshape", "Shape"),
    *("Size", "Slice", "Squeeze", "Unsqueeze"),
}
CONVOLUTIONS = {"Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv"}


@dataclass(frozen=True, slots=True)
class OnCuda:
    """How a session is on CUDA: how convolutions are chosen, whether it captures graphs, bytes its arena may take.

    shares: whether it takes memory from the process's one arena and not from its own.
    """

    algorithms: Algorithms = "HEURISTIC"
    graphs: bool = False
    memory: int | None = None
    shares: bool = False

    @property
    def options(self) -> Mapping[str, str]:
        """The provider's options.

        TF32 moves a score by about 1e-3 relative, past any manifest's tolerance. The arena grows by what is asked for,
        since it never gives back; the default doubles it.
        """
        bound = {} if self.memory is None else {"gpu_mem_limit": str(self.memory)}
        return {
            "device_id": "0",
            "use_tf32": "0",
            "cudnn_conv_algo_search": self.algorithms,
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(self.graphs)),
            **bound,
        }


def open_session(
    graph: Graph, content: bytes, cuda: OnCuda | None = None, weights: bytes | None = None
) -> ort.InferenceSession:
    """A session of bytes whose digest is right, where it was asked to be (None: the CPU), or an error.

    weights: the bytes of weights.bin, where the artifact has it; the session keeps them for as long as it lives.
    """
    if fault := onnx_fault(content, None if weights is None else len(weights)):
        raise ArtifactRefused(f"{graph.file} {fault}")
    wanted: list[object] = [(CUDA, dict(cuda.options)), CPU] if cuda else [CPU]
    try:
        session = ort.InferenceSession(content, _options(cuda, weights), providers=wanted, enable_fallback=0)
    except Exception as error:  # the runtime's exceptions share no base class
        if cuda:
            raise DeviceUnavailable(f"CUDA could not open {graph.file}") from error
        raise ArtifactRefused(f"{graph.file} is not a graph that onnxruntime can open") from error
    if cuda:
        _check_placement(session, graph.file)
    _check_ports(session, graph)
    session.weights = weights  # borrowed, so they must live as long
    session._model_bytes = None  # kept for set_providers and the fallback, neither of which is used; 5.5 MB for mnist
    return session


def has_convolutions(session: ort.InferenceSession) -> bool:
    """Whether a session on CUDA has convolutions, for which there is an algorithm to choose."""
    placed = session.get_provider_graph_assignment_info()
    return any(node.op_type in CONVOLUTIONS for part in placed for node in part.get_nodes())


def _check_ports(session: ort.InferenceSession, graph: Graph) -> None:
    """Refuse a graph whose inputs or outputs are not exactly those of an artifact."""
    found = ({port.name for port in session.get_inputs()}, {port.name for port in session.get_outputs()})
    wanted = ({*graph.rows, *([graph.bank] if graph.bank else [])}, set(graph.outputs))
    for what, there, asked in zip(("takes", "gives"), found, wanted, strict=True):
        if there != asked:
            named = f"{', '.join(sorted(there))}, not {', '.join(sorted(asked))}"
            raise ArtifactRefused(f"{graph.file} {what} {named}")


def _options(cuda: OnCuda | None, weights: bytes | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # patterns are kept for every batch size seen, and never let go
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # not from the arena
    if weights is not None:
        borrow(options, weights)
    if cuda:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if ARENAS.has("Cuda", cuda.memory) if cuda and cuda.shares else cuda is None and ARENAS.has("Cpu"):
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def borrow(options: ort.SessionOptions, weights: bytes) -> None:
    """Have a session use shared weights where they are; they must outlive it.

    Packing would copy every matrix once a session, which is what sharing is to save.
    """
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")


def _check_placement(session: ort.InferenceSession, name: str) -> None:
    """CUDA means CUDA: it comes first, and nothing but the making of shapes is left on the CPU."""
    if session.get_providers()[0] != CUDA:
        raise DeviceUnavailable(f"{name} was opened on the CPU: CUDA is installed and no device answers")
    for placed in session.get_provider_graph_assignment_info():
        if placed.ep_name == CUDA:
            continue
        strays = {node.op_type for node in placed.get_nodes()} - SHAPE_OPS
        if strays:
            raise DeviceUnavailable(f"CUDA leaves {', '.join(sorted(strays))} of {name} to the CPU")
