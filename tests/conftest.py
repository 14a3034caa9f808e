"""Fixtures that every test may ask for; how they work is in tests/kit.py."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.settings import PREFIX
from tests import kit


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_ours() -> Iterator[None]:
    """Whoever runs the tests may have VAE_SERVE_* set; the tests don't."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that the service runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed models, and `plain`, which is tiny without a calibration, in two versions."""
    folder = tmp_path_factory.mktemp("models")
    for path in sorted(kit.COMMITTED.iterdir()):
        (folder / path.name).symlink_to(path)
    kit.copied("plain", folder, calibration=None)
    kit.copied("plain", folder, version=2, calibration=None)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that holds tiny alone."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "tiny").symlink_to(kit.COMMITTED / "tiny")
    return folder


@pytest.fixture(scope="session")
async def house(models: Path, anyio_backend: str) -> AsyncIterator[kit.House]:  # noqa: ARG001  its scope is needed
    """The service on all models, in this process; for tests that leave it as it was."""
    async with kit.open_house(kit.configured(models)) as opened:
        yield opened


@pytest.fixture(scope="session")
def address(models: Path) -> Iterator[str]:
    """The service on all models, on a real socket."""
    with kit.listening(kit.configured(models)) as (found, _):
        yield found


@pytest.fixture(scope="session")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two models: `holed`, tiny's like but trained for missing values, its weights fresh, and tiny."""
    from training import calibrate, config, data, vae
    from training import exporting as export
    from training.fit import Fitted

    folder = tmp_path_factory.mktemp("holed")
    (folder / "tiny").symlink_to(kit.COMMITTED / "tiny")
    plain = config.read(kit.ROOT / "configs" / "tiny.yaml").plain()
    run = config.check({**plain, "name": "holed", "missing": {}}, "holed")
    dataset = data.of(run)
    fitted = Fitted(run, dataset, vae.build(run, dataset).eval().requires_grad_(False), [])
    calibrate.calibrate(export.export(fitted, folder, say=lambda _: None))
    return folder


@pytest.fixture(scope="session")
async def holed_house(holed: Path, anyio_backend: str) -> AsyncIterator[kit.House]:  # noqa: ARG001  its scope is needed
    """The service on those two, in this process."""
    async with kit.open_house(kit.configured(holed)) as opened:
        yield opened


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    folder = tmp_path / "models"
    kit.copied("tiny", folder)
    return folder
