"""The lanes: how many cores there are, and how long a call has been computing."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import pytest

from service.lanes import Lanes, _quota, cores


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, np.inf),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, np.inf),
        ({}, np.inf),
    ],
)
def test_cores_come_from_the_containers_quota(tmp_path: Path, files: dict[str, str], granted: float) -> None:
    """cgroup v2 and v1 are read; no quota means no bound but the host's."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert _quota(tmp_path) == granted
    assert cores() >= 1


@pytest.mark.anyio
async def test_lanes_tell_how_long_a_call_has_been_computing() -> None:
    """A stalled engine is seen from outside; an idle one has no age."""
    lanes, gate, entered = Lanes(1), threading.Event(), threading.Event()

    def work() -> bool:
        entered.set()
        return gate.wait(20)

    assert lanes.longest() <= 0
    await lanes.take()
    async with anyio.create_task_group() as group:
        group.start_soon(lanes.run, work)
        await anyio.to_thread.run_sync(partial(entered.wait, 20))
        assert lanes.longest() > 0
        gate.set()
    assert lanes.longest() <= 0
    lanes.close()
