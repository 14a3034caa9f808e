"""Settings: every knob, typed, bounded and documented, built once and handed down. Read from VAE_SERVE_* and .env."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "VAE_SERVE_"


class SettingsError(Exception):
    """A setting that can't be meant; its text is one line that says what would be right."""


class Settings(BaseSettings):
    """What an operator can set; docs/settings.md lists the same, and a test holds it to this."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    models: Path = Field(Path("exported_models"), description="folder of artifacts, <name>/<version>/")
    required: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma list of the names that must be ready; empty: every model found"
    )
    default_versions: Annotated[dict[str, int], NoDecode] = Field(
        {},
        description="comma list of name=version: the version that answers where a request names none; "
        "else the highest loaded",
    )
    poll_s: float = Field(
        0.0, ge=0, le=86_400, description="seconds between looks at the folder for versions that came or went; 0: none"
    )
    admin_token: SecretStr | None = Field(
        None, description="bearer token that loads and unloads models over HTTP, 16 characters or more; unset: nobody"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda is strict, auto falls back to the CPU and says so"
    )
    buckets: Annotated[Literal["auto", "off"] | tuple[int, ...], NoDecode] = Field(
        "auto",
        description="auto, off, or a comma list of the rows that batches are padded to; "
        "auto: 1, 4, 16, … on CUDA, off on the CPU",
    )
    cuda_graphs: bool = Field(True, description="capture a CUDA graph of each bucket at the calibrated draws")
    gpu_memory_mb: int = Field(
        0, ge=0, le=1_048_576, description="most MiB that one graph's arena may take on the device; 0: no bound"
    )
    workers: int = Field(
        0, ge=0, le=256, description="processes that serve the port, on Linux and without CUDA; 0: one"
    )
    lanes: int = Field(
        0, ge=0, le=256, description="threads that compute, of each worker; 0: its share of the cores of the CPU quota"
    )
    batch: int = Field(1024, ge=1, le=1_048_576, description="most decoder rows (rows × draws) in one engine call")
    batch_ms: int = Field(
        25, ge=1, le=60_000, description="about how long one engine call may take; slow graphs get smaller batches"
    )
    waiting: int = Field(2_097_152, ge=1, description="decoder rows that may wait for one graph; then 429")
    waiting_ms: int = Field(
        2_000, ge=1, le=86_400_000, description="how long a newcomer may have to wait for its turn at a graph; then 429"
    )
    inline_us: int = Field(
        1_000,
        ge=0,
        le=5_000,
        description="a batch that takes less is computed on the event loop, sooner than a thread wakes; 0: none",
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="largest body, after decompression")
    max_held_bytes: int = Field(
        512 * 2**20, ge=1, description="bodies and arrays of all requests together, in bytes; then 429"
    )
    max_json_depth: int = Field(64, ge=4, le=64, description="deepest nesting of a JSON body")
    max_rows: int = Field(4096, ge=1, description="rows in one request")
    max_draws: int = Field(4096, ge=1, description="draws a row in one request")
    max_evidence_draws: int = Field(16_384, ge=1, description="decoder calls a row in one evidence request")
    max_row_draws: int = Field(1_048_576, ge=1, description="rows × draws in one request")
    timeout_ms: int = Field(30_000, ge=1, le=86_400_000, description="deadline of a request that names none")
    max_timeout_ms: int = Field(300_000, ge=1, le=86_400_000, description="longest deadline a request may name")
    drain_grace_ms: int = Field(
        3_000, ge=0, le=600_000, description="after SIGTERM, how long requests are still taken while /readyz is 503"
    )
    drain_limit_ms: int = Field(
        30_000, ge=0, le=600_000, description="after that, how long what is in flight may take to finish"
    )
    stall_ms: int = Field(60_000, ge=1, description="an engine call longer than this turns /livez 503")
    state: Path | None = Field(
        None,
        description="folder that keeps calibrations made while serving; unset: the artifacts' are used",
    )
    calibrate: bool = Field(False, description="offer POST …/calibrate; needs VAE_SERVE_STATE")
    drift_false_alarm: float = Field(
        0.001,
        ge=0,
        le=0.5,
        description="probability that a model ever alarms of drift where there is none; 0: no watch",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line logged")
    log_format: Literal["auto", "text", "json"] = Field("auto", description="auto: text on a terminal, else JSON lines")
    access_log: Literal["none", "errors", "all"] = Field(
        "errors",
        description="which requests get a line in the log; with `errors` at most 16 a second of each status and "
        "process, and then how many more there were",
    )
    welcome: bool = Field(True, description="once ready, print on standard output where to go next")

    @field_validator("calibrate")
    @classmethod
    def _needs_a_state(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("state") is None:
            raise ValueError(f"{PREFIX}STATE should be set too, to the folder where calibrations are to be kept")
        return value

    @field_validator("admin_token")
    @classmethod
    def _cant_be_guessed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]{16,}", value.get_secret_value()):
            raise ValueError("should be 16 characters or more of visible ASCII; `openssl rand -hex 32` prints 64")
        return value

    @field_validator("default_versions", mode="before")
    @classmethod
    def _version_of_each(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        found = [re.fullmatch(r"([a-z0-9][a-z0-9_-]{0,63})\s*=\s*([1-9][0-9]{0,8})", part) for part in parts]
        pairs = [(match[1], int(match[2])) for match in found if match]
        if len(dict(pairs)) < len(parts):
            raise ValueError("should be a comma list of name=version, each name once: mnist=2, tiny=1")
        return dict(pairs)

    @field_validator("buckets", mode="before")
    @classmethod
    def _rows_of_batches(cls, value: object) -> object:
        if not isinstance(value, str) or value in ("auto", "off"):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= 1_048_576 for part in parts):
            raise ValueError("should be auto, off, or a comma list of numbers of rows from 1 to 1,048,576")
        return tuple(int(part) for part in parts)

    @field_validator("required", mode="before")
    @classmethod
    def _comma_list(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def load() -> Settings:
    """Settings from the environment and .env; SettingsError on an unknown name or a value that can't be meant."""
    _refuse_unknown({*os.environ, *dotenv_values(".env")})
    try:
        return Settings()
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = PREFIX + str(found["loc"][0]).upper()
        secret = Settings.model_fields[str(found["loc"][0])].annotation == SecretStr | None
        value = "…" if secret else " ".join(str(found["input"]).split())  # one line, whatever the value holds
        said = found["msg"].removeprefix("Value error, ")
        said = said if said.startswith(PREFIX) else said[:1].lower() + said[1:]
        raise SettingsError(f"{name}={value}: {said}") from None


def _refuse_unknown(names: set[str]) -> None:
    known = [name.upper() for name in Settings.model_fields]
    for name in sorted(names):
        bare = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and bare not in known:
            close = difflib.get_close_matches(bare, known, n=1)  # without the prefix, which would make all alike
            hint = f"did you mean {PREFIX}{close[0]}?" if close else f"there are {', '.join(PREFIX + n for n in known)}"
            raise SettingsError(f"{name} is not a setting; {hint}")
