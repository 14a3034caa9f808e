"""Job: an inference at the front, from its whole body to its answer's bytes. Knows no connection."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from service.appraisal import Yardstick
from service.artifact import Array
from service.errors import Problem
from service.http.calls import LARGE, WIDEST
from service.http.exchange import INLINE, Drop, Heard, Held
from service.http.express import Entry
from service.http.jobs import HELD, LARGEST, Job, Reply, Tell
from service.http.scores import Columns, Score
from service.http.telemetry import Sitting, Visit
from service.http.v2 import answer, tensors
from service.http.v2.infer import LENGTH, Window, composed, effort, parsed, prepared
from service.http.v2.request import Inference
from service.http.v2.served import Served
from service.models import Model

LENGTH_HEAD = LENGTH.lower().encode()

# What is compressed on the loop if its caller accepts that: some kibibytes, in a tenth of a millisecond.
FEW_ROWS, FEW_BYTES = 32, 16_384

# What takes the express behind a few bytes of JSON: so many numbers are looked at in less than a millisecond.
LARGEST_TENSORS, MOST_NUMBERS = 2_097_152, 524_288


class Inferred(Job):
    """A request to infer."""

    __slots__ = ("_heard", "_served", "_visit", "_wanted", "_window")

    def __init__(self, window: Window, name: str, version: str | None, heard: Heard, visit: Visit) -> None:
        self._window, self._heard, self._visit = window, heard, visit
        self._served = window.begin(heard, visit, name, version)
        self._wanted: Inference | None = None  # what was read of the body, once it has been

    def quick(self, content: bytes, held: Held, tell: Tell) -> Drop | None:
        """See Job: small scores; smaller ones where the answer may be compressed, which most clients accept unasked."""
        heard, served, window = self._heard, self._served, self._window
        operation, desk = served.operation, window.desk
        limit = FEW_BYTES if heard.accept_encoding else INLINE
        small = effort(heard.tensors_after, len(content)) <= limit
        if operation.quick is None or not small or heard.content_encoding:
            return None
        started = time.perf_counter()
        # Without a header the deadline may be named in the body.
        served.model.check(math.inf if heard.timeout is None else self._visit.errand.deadline)
        wanted = self._wanted = parsed(content, None, heard.tensors_after, served, desk.limits)
        held.resize(wanted.nbytes)
        self._visit.parse = time.perf_counter() - started
        if wanted.timeout is not None:
            window.hurry(heard, self._visit, wanted.timeout)
        fields, array = prepared(served, wanted)
        if heard.accept_encoding and array is not None and len(array) > FEW_ROWS:
            return None
        return operation.quick(desk, served.model, fields, array, self._visit, partial(self._told, wanted, tell))

    def _told(self, wanted: Inference, tell: Tell, found: Mapping[str, Any] | Problem) -> None:
        if isinstance(found, Problem):
            tell(found)
            return
        started = time.perf_counter()
        try:
            reply = _reply(*composed(self._served, wanted, answer.flat(found, wanted), self._heard.accept_encoding))
        except Exception as error:
            tell(error)
            return
        self._window.tally.succeeded(self._served, self._visit, time.perf_counter() - started)
        tell(reply)

    async def work(self, content: bytes, held: Held, clock: asyncio.Timeout) -> Reply:
        """See Job."""
        heard, wanted = self._heard, self._wanted
        headers, body, written = await self._window.work(
            heard, self._served, self._visit, content, held, clock, wanted=wanted
        )
        self._window.tally.succeeded(self._served, self._visit, written)
        return _reply(headers, body)

    def failed(self) -> None:
        """Count it."""
        self._window.tally.failed(self._served, self._visit)


def _reply(headers: Mapping[str, str], body: bytes) -> Reply:
    return b"".join([f"{name}: {value}\r\n".encode() for name, value in headers.items()]), body


class Scores:
    """How scores are spoken of here: what the express needs to know of it."""

    def __init__(self, window: Window, name: str, version: str | None, length: str | None) -> None:
        self._window, self._name, self._version, self._length = window, name, version, length
        self._split = int(length) if length and re.fullmatch("[0-9]{1,15}", length) else 0
        self.largest = LARGEST_TENSORS if 0 < self._split <= FEW_BYTES else LARGEST
        self._seen: dict[bytes, tuple[Served, Form, Score, str, tuple[int, ...]]] = {}

    def _served(self) -> Served:
        served = self._window.shelf.find(self._name, self._version)
        if served.operation.name != "score":
            raise ValueError("not a score")
        return served

    def model(self) -> Model:
        """See Speaker."""
        return self._served().model

    def held(self, length: int) -> int:
        """See Speaker: tensors are read where they lie, and copied once."""
        text = min(self._split, length) if self._split else length
        return text * HELD + (length - text) * 2

    def spaces(self, length: int) -> int:
        """See Speaker."""
        return -self._split % WIDEST if length >= LARGE else 0

    def read(self, model: Model, body: bytes, spaces: int) -> tuple[Score, Array, Form]:
        """See Speaker: JSON that was seen before is not read again."""
        limits, split = self._window.desk.limits, self._split + spaces
        text = body[spaces:split] if self._split else b""
        seen = self._seen.get(text) if text else None
        if seen and seen[0].model is model:
            _, form, asked, datatype, shape = seen
            array = tensors.from_bytes(body, split, len(body) - split, datatype, shape, "inputs")
        else:
            served = self._served()
            wanted = parsed(body, None, str(split) if spaces else self._length, served, limits)
            if wanted.timeout is not None or wanted.id is not None:
                raise ValueError("a request like no other")
            fields, found = prepared(served, wanted)
            if found is None:
                raise ValueError("no rows")
            asked, array, form = fields, found, Form(served, replace(wanted, inputs={}))
            if text and len(text) <= FEW_BYTES and b'"data"' not in text:
                if len(self._seen) >= SEEN:
                    self._seen.clear()
                self._seen[text] = served, form, asked, tensors.datatype_of(array.dtype), array.shape
        if array.size > MOST_NUMBERS:
            raise ValueError("more numbers than are looked at on the loop")
        limits.check(len(array), asked.draws or model.draws)
        return asked, array, form

    def write(self, columns: Columns, start: int, stop: int, entry: Entry) -> Reply:
        """See Speaker: where all that is wanted is a few columns in binary, the JSON is what it was before."""
        form, alpha = entry.form, entry.asked.alpha
        if not form.binary or not columns.arrays.keys() >= form.names:
            return _reply(*self._composed(columns, start, stop, alpha, form))
        said = form.said.get((columns.by, stop - start))
        if said is None:
            headers, body = self._composed(columns, start, stop, alpha, form)
            said = _reply(headers, b"")[0], body[: int(headers[LENGTH])]
            if len(form.said) >= SEEN:
                form.said.clear()
            form.said[columns.by, stop - start] = said
        parts = [columns.arrays[one.name][start:stop].tobytes() for one in form.wanted.outputs]
        return said[0], said[1] + b"".join(parts)

    def _composed(
        self, columns: Columns, start: int, stop: int, alpha: float, form: Form
    ) -> tuple[dict[str, str], bytes]:
        fields = _arrays(columns.fields(start, stop, alpha))
        return composed(form.served, form.wanted, answer.flat(fields, form.wanted), None)

    def forget(self) -> None:
        """See Speaker."""
        self._seen.clear()

    def count(self, sitting: Sitting, seconds: float) -> None:
        """See Speaker."""
        served = self._window.shelf.of(sitting.model, "score", self._name)
        self._window.tally.succeeded_many(served, sitting, seconds)


class Form:
    """What an inference wants of an answer. said: headers and JSON, by yardstick and rows, if all else is buffers."""

    __slots__ = ("binary", "names", "said", "served", "wanted")

    def __init__(self, served: Served, wanted: Inference) -> None:
        self.served, self.wanted = served, wanted
        self.names = {one.name for one in wanted.outputs}
        forms = [wanted.binary if one.binary is None else one.binary for one in wanted.outputs]
        self.binary = bool(forms) and all(forms)
        self.said: dict[tuple[Yardstick, int], tuple[bytes, bytes]] = {}


def _arrays(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of numbers as the arrays that they were made of."""
    made: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            made[name] = _arrays(value)
        elif isinstance(value, list) and name != "anomaly":
            made[name] = np.asarray(value, np.float64)
        else:
            made[name] = value
    return made


SEEN = 64  # headers, and answers' forms, that are remembered


class Finder:
    """Which job a path of /v2 stands for, if any."""

    aligns = True

    def __init__(self, window: Window) -> None:
        self._window = window

    def scores(self, parts: Sequence[str], heads: Mapping[bytes, bytes]) -> Scores | None:
        """Who speaks of scores at a path, to requests with these headers, where the express serves them."""
        if not heads.keys() <= {b"content-type", b"content-length", b"accept", LENGTH_HEAD}:
            return None
        length = heads[LENGTH_HEAD].decode("latin-1") if LENGTH_HEAD in heads else None
        if len(parts) > 3 and parts[3].partition(".")[2] not in ("", "score"):
            return None
        match parts:
            case ["", "v2", "models", model, "infer"]:
                return Scores(self._window, model, None, length)
            case ["", "v2", "models", model, "versions", version, "infer"]:
                return Scores(self._window, model, version, length)
        return None

    def __call__(self, parts: Sequence[str]) -> Callable[[Heard, Visit], Job] | None:
        """What begins the job, by the path's parts."""
        match parts:
            case ["", "v2", "models", model, "infer"] if model:
                return partial(Inferred, self._window, model, None)
            case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
                return partial(Inferred, self._window, model, version)
        return None
