"""Settings: every knob can be turned, is in the docs, and one that can't be meant stops the start with one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.settings import PREFIX, Settings, SettingsError, load
from tests.kit import ROOT, program, running

DOCS = ROOT / "docs" / "settings.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, for a .env."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_defaults_are_the_contracts(here: Path) -> None:
    """Without any variable."""
    assert not list(here.iterdir())
    found = load()
    assert (found.host, found.port, found.device) == ("127.0.0.1", 8000, "auto")
    assert (found.models, found.required) == (Path("exported_models"), ())
    assert (found.max_body_bytes, found.max_json_depth) == (64 * 2**20, 64)
    assert (found.max_rows, found.max_draws, found.max_row_draws) == (4096, 4096, 1_048_576)
    assert found.max_evidence_draws == 16_384


# Where the default and one more won't do.
TURNED: dict[str, tuple[str, object]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "models": ("/srv/models", Path("/srv/models")),
    "required": (" tiny, mnist ,", ("tiny", "mnist")),
    "default_versions": (" tiny=2, mnist = 1,", {"tiny": 2, "mnist": 1}),
    "poll_s": ("2.5", 2.5),
    "admin_token": ("0123456789abcdef", SecretStr("0123456789abcdef")),
    "device": ("cpu", "cpu"),
    "buckets": (" 1, 32", (1, 32)),
    "cuda_graphs": ("false", False),
    "max_json_depth": ("8", 8),
    "state": ("/var/lib/vae-serve", Path("/var/lib/vae-serve")),
    "calibrate": ("true", True),
    "drift_false_alarm": ("0.05", 0.05),
    "log_format": ("json", "json"),
    "welcome": ("false", False),
}


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_every_setting_can_be_set(here: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str) -> None:
    """By a variable, and by the same name in a .env."""
    field = Settings.model_fields[name]
    fallback = (str(field.default + 1), field.default + 1) if isinstance(field.default, int) else None
    fallback = fallback or (get_args(field.annotation)[-1:] or ("",)) * 2  # the last of its choices
    text, value = TURNED.get(name, fallback)
    if name == "calibrate":
        monkeypatch.setenv(f"{PREFIX}STATE", "state")
    if place == "environment":
        monkeypatch.setenv(PREFIX + name.upper(), text)
    else:
        (here / ".env").write_text(f"{PREFIX}{name.upper()}={text}\n")
    assert getattr(load(), name) == value
    assert value != field.default


def test_the_environment_goes_before_the_env_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said last, and closest, counts."""
    (here / ".env").write_text(f"{PREFIX}PORT=1111\n{PREFIX}BATCH=7\n")
    monkeypatch.setenv(f"{PREFIX}PORT", "2222")
    assert (load().port, load().batch) == (2222, 7)


def test_other_programs_keys_are_ignored(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a .env and in the environment, even where they sound like ours."""
    (here / ".env").write_text("PORT=1\nDATABASE_URL=x\nSERVE_PORT=2\nVAE_PORT=3\n")
    monkeypatch.setenv("HOST", "elsewhere")
    assert (load().port, load().host) == (8000, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "hint"), [("PROT", "PORT"), ("MAX_ROW", "MAX_ROWS"), ("MODEL", "MODELS"), ("ZZZ", "HOST"), ("", "HOST")]
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_an_unknown_name_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str, place: str
) -> None:
    """With the name that may have been meant, or all there are."""
    if place == "environment":
        monkeypatch.setenv(PREFIX + name, "1")
    else:
        (here / ".env").write_text(f"{PREFIX}{name}=1\n")
    with pytest.raises(SettingsError, match=f"{PREFIX}{name} is not a setting.*{PREFIX}{hint}"):
        load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("PORT", ""),
        ("DEVICE", "gpu"),
        ("DEFAULT_VERSIONS", "tiny"),
        ("DEFAULT_VERSIONS", "tiny=0"),
        ("DEFAULT_VERSIONS", "tiny=1,tiny=2"),
        ("POLL_S", "-1"),
        ("ADMIN_TOKEN", ""),
        ("ADMIN_TOKEN", "short"),
        ("BATCH", "0"),
        ("BUCKETS", "0"),
        ("BUCKETS", "1,,2"),
        ("BUCKETS", "some"),
        ("GPU_MEMORY_MB", "-1"),
        ("LANES", "-1"),
        ("WAITING", "0"),
        ("MAX_ROWS", "many"),
        ("MAX_JSON_DEPTH", "3"),
        ("MAX_JSON_DEPTH", "65"),  # no array has more axes
        ("TIMEOUT_MS", "0"),
        ("DRAIN_GRACE_MS", "-1"),
        ("DRIFT_FALSE_ALARM", "2"),
        ("CALIBRATE", "true"),  # without a state
        ("LOG_LEVEL", "loud"),
        ("WELCOME", "perhaps"),
        ("PORT", "1\n2"),
    ],
)
def test_a_value_that_cant_be_meant_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It names the variable and says what would be right."""
    assert here.is_dir()
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert PREFIX + name in said
    assert "should be" in said


def test_a_token_is_never_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the line that refuses it, nor by whoever prints the settings."""
    assert here.is_dir()
    monkeypatch.setenv(f"{PREFIX}ADMIN_TOKEN", "hush hush hush hush")
    with pytest.raises(SettingsError) as caught:
        load()
    assert "hush" not in str(caught.value)
    monkeypatch.setenv(f"{PREFIX}ADMIN_TOKEN", "hush-hush-hush-hush")
    assert "hush" not in repr(load())


@pytest.mark.parametrize("changes", [{"port": "http"}, {"prot": "8000"}])
@pytest.mark.parametrize("arguments", [(), ("score", "tiny", "rows.npy", "-o", "out.npz")])
def test_the_start_stops_with_one_line(arguments: tuple[str, ...], changes: dict[str, str]) -> None:
    """Nothing else on standard error, nothing on standard output, and a status that isn't 0."""
    ended = program(*arguments, cwd=ROOT, **changes)
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert all(PREFIX + name.upper() in ended.stderr for name in changes)


def test_a_port_that_is_taken_ends_the_start(small: Path) -> None:
    """With a line that names it, and a status that isn't 0."""
    with running(models=str(small)) as (_, address):
        port = address.rpartition(":")[2]
        ended = program(models=str(small), port=port, device="cpu", log_format="text", welcome="false")
        assert ended.returncode != 0
        assert port in ended.stderr


def test_an_env_file_beside_the_start_is_read(small: Path, tmp_path: Path) -> None:
    """`python -m service` in a folder with a .env."""
    (tmp_path / ".env").write_text(f"{PREFIX}MAX_ROWS=2\nOTHERS_KEY=1\n")
    with running(cwd=tmp_path, models=str(small)) as (_, address):
        assert httpx.post(f"{address}/v1/models/tiny/sample", json={"count": 2}).status_code == 200
        assert httpx.post(f"{address}/v1/models/tiny/sample", json={"count": 3}).status_code == 413


# ---------------------------------------------------------------- the docs


def _default(field: FieldInfo) -> str:
    """A default as one would write it into the environment."""
    value: Any = field.default
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in ((), {}, None) else str(value)


def _bounds(field: FieldInfo) -> str:
    """What a setting may be, in the docs' words."""
    least, most = (
        next((getattr(rule, name) for rule in field.metadata if hasattr(rule, name)), None) for name in ("ge", "le")
    )
    if field.annotation is bool:
        return "true, false"
    if choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
        return ", ".join(choices)
    if least is None and most is None:
        return ""
    return f"{least:,} to {most:,}" if most is not None else f"from {least:,}"


def rows() -> list[str]:
    """The table that docs/settings.md must hold."""
    return [
        f"| `{PREFIX}{name.upper()}` | {f'`{_default(field)}`' if _default(field) else 'empty'} "
        f"| {_bounds(field) or 'any'} | {(field.description or '').replace('<', chr(92) + '<')} |"
        for name, field in Settings.model_fields.items()
    ]


def test_every_setting_is_in_the_docs_with_its_default_and_bounds() -> None:
    """And nothing is there that isn't a setting; to change the docs, paste what this finds missing."""
    written = [line for line in DOCS.read_text().splitlines() if re.match(rf"\| `{PREFIX}", line)]
    assert written == rows()
