"""The graph in this process, without a server: what every server is held to. One one-thread session, or two at once."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import simdjson

from service.artifact import Array

BATCHES = (1, 8, 16, 32, 64, 128, 256, 512)


class Graph:
    """Two one-thread sessions of one elbo.onnx, with the noise of one draw."""

    def __init__(self, file: Path, noise: Array) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._sessions = [ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for _ in range(2)]
        self._noise = noise

    def elbo(self, x: Array, session: int = 0) -> Array:
        """The ELBO of each row with one draw, (rows,) float64."""
        found = self._sessions[session].run(["log_likelihood", "kl"], {"x": x, "noise": self._noise})
        return np.asarray(found[0][:, 0] - found[1])

    def p50(self, x: Array, seconds: float) -> float:
        """The median time of one call, in seconds."""
        times = []
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            self.elbo(x)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def rate(self, x: Array, seconds: float, sessions: int = 2) -> float:
        """Rows a second in so many sessions at once, each in a thread of its own."""
        done = [0] * sessions
        started = time.perf_counter()

        def work(session: int) -> None:
            while time.perf_counter() < started + seconds:
                self.elbo(x, session)
                done[session] += len(x)

        threads = [threading.Thread(target=work, args=(session,)) for session in range(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done) / (time.perf_counter() - started)

    def best(self, x: Array, seconds: float, sessions: int) -> tuple[float, int]:
        """The best rows a second over batches, and the batch; x has a row, which is repeated."""
        rates = {batch: self.rate(np.repeat(x[:1], batch, 0), seconds, sessions) for batch in BATCHES}
        batch = max(rates, key=lambda batch: rates[batch])
        return rates[batch], batch


def parsing(body: bytes, dtype: np.dtype[np.generic], seconds: float) -> float:
    """The median time from a JSON body's bytes to an array, in seconds."""
    times = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        document: Any = simdjson.Parser().parse(body)
        numbers = document["inputs"].as_buffer(of_type="d")
        np.frombuffer(numbers, np.float64).astype(dtype)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
