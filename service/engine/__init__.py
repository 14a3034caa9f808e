"""The engine: one artifact's ONNX Runtime sessions. Knows nothing of requests, and nothing of who computes when.

opening      an artifact → an engine, on the CPU or on CUDA
plain        Engine: sessions, and rows → answers
bucketed     the same at a few fixed shapes, in buffers made once: what CUDA wants
    stage      one graph's session and its slots
    slot       one batch's buffers: in, run, out
    grid       the shapes, and how rows and draws are cut and padded to them
    cuda       libcudart, as far as buffers and copies need it
sessions     graphs opened in the runtime
memory       what the runtime and the C library take and keep
golden       what a graph must answer before it is served
onnxfile     whether a file is one self-contained graph, and nothing that harms who opens it
    sizes      how large the tensors become that it makes of its constants
    protobuf   the fields of a message
"""

from service.engine.bucketed import Bucketed
from service.engine.golden import LOOSEST, check_golden, difference
from service.engine.grid import Plan
from service.engine.memory import ARENAS, CPU, CUDA, bound_heaps
from service.engine.onnxfile import Hostile, look, onnx_fault
from service.engine.opening import Device, may_be_cuda, open_engine
from service.engine.plain import Engine
from service.engine.sessions import borrow

__all__ = [
    "ARENAS",
    "CPU",
    "CUDA",
    "LOOSEST",
    "Bucketed",
    "Device",
    "Engine",
    "Hostile",
    "Plan",
    "borrow",
    "bound_heaps",
    "check_golden",
    "difference",
    "look",
    "may_be_cuda",
    "onnx_fault",
    "open_engine",
]
