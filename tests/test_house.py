"""The house stands as docs/why.md draws it: who may import whom, and what the service must never import."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {"errors", "artifact", "frames", "noise", "families", "scoring"}
LEAVES |= {"anomaly", "appraisal", "calibration", "conditional", "drift", "evidence"}
# Who may import what inside the service, leaves aside. http → operations → models → batcher → engine.
ARROWS = {
    "errors": set[str](),
    "debts": set[str](),
    "artifact": {"errors"},
    "frames": set[str](),
    "noise": {"frames"},
    "families": {"artifact"},
    "scoring": {"noise"},
    "evidence": {"noise", "scoring"},
    "anomaly": {"scoring"},
    "calibration": {"anomaly"},
    "appraisal": {"anomaly", "artifact", "calibration", "errors", "noise", "scoring"},
    "conditional": {"evidence", "scoring"},
    "drift": set[str](),
    "state": LEAVES,
    "footing": LEAVES | {"state"},
    "lanes": set[str](),
    "cost": set[str](),
    "works": LEAVES | {"engine", "cost", "batcher"},
    "engine": LEAVES,
    "batcher": LEAVES | {"lanes", "cost"},
    "models": LEAVES | {"engine", "lanes", "cost", "batcher", "works", "footing"},
    "repository": LEAVES | {"models"},
    "operations": LEAVES | {"models", "batcher", "works", "footing", "state"},
    "door": {"errors"},
    "settings": set[str](),
    "metrics": set[str](),
    "logs": set[str](),
    "workers": LEAVES | {"settings", "metrics", "models", "engine", "lanes", "footing", "door", "debts"},
    "http": LEAVES | {"operations", "models", "footing", "door", "debts"},
    "http.admin": LEAVES | {"models", "repository"},
    "http.telemetry": LEAVES | {"operations", "models", "door", "metrics"},
    "http.health": LEAVES | {"models", "door", "metrics"},
    "http.v2": LEAVES | {"models", "metrics"},
    "http.v2.tally": LEAVES | {"metrics"},
}
ANYTHING = {
    "app",
    "check",
    "__main__",
    "ahead",
    "inventory",
    "offline",
    "serving",
    "welcome",
}  # the doorsteps: they put the parts together


def modules(package: str) -> list[Path]:
    """Every module of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """All modules that a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path) -> str:
    """A service module's name without the package: `http.wire`."""
    return ".".join(path.relative_to(ROOT / "service").with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules("service"), ids=own)
def test_each_module_imports_only_from_its_right(path: Path) -> None:
    """http → operations → models → batcher → engine, and leaves for anyone."""
    name = own(path)
    room = name.partition(".")[0]
    if room in ANYTHING or name == "__init__":
        return
    allowed = ARROWS.get(name, ARROWS[room])
    for imported in imports(path):
        if not imported.startswith("service."):
            continue
        parts = imported.split(".")[1:]
        assert parts[0] in allowed or parts[0] == room, f"{name} imports {imported}"


@pytest.mark.parametrize("package", ["service"])
def test_the_service_never_imports_torch_or_the_trainer(package: str) -> None:
    """Neither by name, nor in effect: a process that serves has no torch in it."""
    for path in modules(package):
        assert not [name for name in imports(path) if name.split(".")[0] in ("torch", "training", "lightning", "onnx")]
    code = "import sys, service.app, service.__main__; sys.exit(bool({'torch', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_folder_of_code_is_a_package_that_is_installed() -> None:
    """What pyproject.toml lists is what there is."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for name in ("service", "training") for path in (ROOT / name).rglob("__init__.py")}
    assert sorted(listed) == sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)


def test_only_the_wire_and_the_app_know_fastapi() -> None:
    """The rest could be spoken to in another way."""
    for path in modules("service"):
        if own(path).startswith("http") or own(path) in ("app", "serving", "welcome"):
            continue
        assert not [name for name in imports(path) if name.split(".")[0] in ("fastapi", "starlette", "uvicorn")], path


# What the command line imports, and then what opening every artifact imports besides.
OPENS = """
import sys
import service.__main__
from service.ahead import standard_opener
from service.models import on_disk
from service.settings import Settings

before = set(sys.modules)
settings = Settings(_env_file=None, device="cpu")
opened = [take() for take in on_disk(settings.models, standard_opener(settings)).values()]
assert len(opened) > 3
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"encodings"}))
print(sorted({"fastapi", "starlette", "uvicorn"} & set(sys.modules)))
"""


def test_whoever_opens_artifacts_imports_nothing() -> None:
    """They are opened while another thread imports the framework: two could wait for one another's modules."""
    found = subprocess.run([sys.executable, "-c", OPENS], cwd=ROOT, check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-2:] == ["[]", "[]"]


def test_no_module_outgrows_its_room() -> None:
    """A module that passes about 400 lines becomes a folder of the same name."""
    for path in (*modules("service"), *modules("training")):
        assert len(path.read_text().splitlines()) <= 420, path


def test_telemetry_is_off_before_the_runtime_is_imported() -> None:
    """onnxruntime reads the variable once, when it is first imported."""
    code = "import service.engine, os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert "ORT_DISABLE_TELEMETRY" in (ROOT / "service" / "__init__.py").read_text()
