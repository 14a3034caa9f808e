"""The compiled requirements follow pyproject.toml, agree with each other, and say nothing of where they came from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "service-cpu": ["cpu"],
    "service-gpu": ["gpu"],
    "trainer": ["cpu", "train", "dev"],
}


def pinned(file: str) -> dict[str, str]:
    """name → version, as one of the files pins it."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("file", FILES)
def test_everything_that_we_ask_for_is_pinned(file: str) -> None:
    """A dependency that is new in pyproject.toml is compiled in: make requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in FILES[file] for one in project["optional-dependencies"][extra]),
    ]
    names = {re.split(r"[^A-Za-z0-9_.-]", one)[0].lower().replace("_", "-") for one in wanted}
    assert names <= pinned(file).keys()


def test_what_the_files_share_has_one_version() -> None:
    """What calibrates is what serves, on the CPU and on CUDA."""
    service = pinned("service-cpu")
    for other in map(pinned, ("service-gpu", "trainer")):
        assert {name: other[name] for name in service.keys() & other.keys()} == {
            name: service[name] for name in service.keys() & other.keys()
        }


@pytest.mark.parametrize("file", FILES)
def test_no_address_is_written_down(file: str) -> None:
    """Where packages come from is the business of the machine that installs them."""
    assert "://" not in (ROOT / "requirements" / f"{file}.txt").read_text()


@pytest.mark.parametrize("file", ["service-cpu", "service-gpu"])
def test_the_service_installs_by_hash_and_holds_no_torch(file: str) -> None:
    """Every pin has its hashes, and the trainer's weight stays with the trainer."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    pins = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in pin for pin in pins)
    assert "torch" not in pinned(file)
