"""What can go wrong, in our own terms. Knows nothing of HTTP: http/errors.py gives each its status.

Problem
├── Refused                 the caller's mistake; the message says what to do instead
│   ├── Malformed           the bytes can't be read as what they claim to be
│   ├── Unauthorised        no bearer token where one is needed, or another one
│   ├── Unknown             no such model, version or operation
│   ├── Unspeakable         the answer is wanted in a form we don't write
│   ├── Unreadable          the body is in a form we don't read
│   ├── TooLarge            a limit, named in the message
│   │   └── HeadTooLarge    that of a request's head
│   ├── NotLoaded           what was to be loaded was refused; what was served before still is
│   └── Invalid             read, understood, and not a request for this model
├── Unavailable             not the caller's mistake, and not for ever
│   ├── Overloaded          the waiting room is full
│   ├── NotReady            still loading, refused at load, or draining
│   ├── Late                the deadline passed, or can't be met
│   ├── Interrupted         the process that had the request died
│   └── Unkept              what was to be kept on disk can't be written there
└── Ours                    nobody's mistake but ours
    ├── ArtifactRefused     a folder that isn't the artifact its manifest says
    ├── DeviceUnavailable   CUDA was demanded and isn't there
    └── EngineFailed        the runtime could not compute these rows
        └── EngineLost      nor can it compute any others: the process must be started again
"""

from __future__ import annotations

from dataclasses import dataclass


class Problem(Exception):
    """Anything this service says about what went wrong."""


class Refused(Problem):
    """The caller's mistake."""


class Malformed(Refused):
    """The bytes can't be read as what they claim to be."""


class Unauthorised(Refused):
    """No bearer token where one is needed, or another one."""


class NotLoaded(Refused):
    """What was to be loaded was refused; what was served before still is."""


class Unknown(Refused):
    """No such model, version or operation."""


class Unspeakable(Refused):
    """The answer is wanted in a form we don't write."""


class Unreadable(Refused):
    """The body is in a form we don't read."""


class TooLarge(Refused):
    """Over a limit; the message names it."""


class HeadTooLarge(TooLarge):
    """The head of a request is over its limit."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request: where (a JSON pointer, RFC 6901) and why."""

    pointer: str
    reason: str


def pointer(*steps: object) -> str:
    """A JSON pointer (RFC 6901); a long name is shortened, since it is the caller's and comes back in the answer.

    >>> pointer("inputs", 3, "a/b")
    '/inputs/3/a~1b'
    """
    names = (str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    return "".join(f"/{name if len(name) <= 80 else name[:79] + '…'}" for name in names)


class Invalid(Refused):
    """Read, understood, and not a request for this model."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(f"{fault.pointer or '/'}: {fault.reason}" for fault in faults))
        self.faults = faults


def invalid(pointer: str, reason: str) -> Invalid:
    """An Invalid of one fault.

    >>> str(invalid("/draws", "must be at least 1"))
    '/draws: must be at least 1'
    """
    return Invalid(Fault(pointer, reason))


class Unavailable(Problem):
    """Not now; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """The waiting room is full."""


class NotReady(Unavailable):
    """Still loading, refused at load, or draining."""


class Late(Unavailable):
    """The deadline passed, or can't be met."""


class Interrupted(Unavailable):
    """The process that had the request died before its answer."""


class Unkept(Unavailable):
    """What was to be kept on disk can't be written there."""


class Ours(Problem):
    """Nobody's mistake but ours."""


class ArtifactRefused(Ours):
    """A folder that isn't the artifact its manifest says."""


class DeviceUnavailable(Ours):
    """CUDA was demanded and isn't there."""


class EngineFailed(Ours):
    """The runtime could not compute these rows."""


class EngineLost(EngineFailed):
    """The device is lost to this process, which must be started again."""
