"""Every setting of the service: a flag, an environment variable ``FERKIT_...``, or a line of a TOML file."""

from __future__ import annotations

import ipaddress
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import TomlConfigSettingsSource

from ferkit.core.errors import FerkitError
from ferkit.core.files import cache_folder

CONFIG = "FERKIT_CONFIG"
"""Environment variable that names the TOML file."""

MIB = 1 << 20


class Settings(BaseSettings):
    """All settings. A flag outranks the environment, which outranks the TOML file."""

    model_config = SettingsConfigDict(env_prefix="FERKIT_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    hosts: tuple[str, ...] = Field(
        (), description="Host names that clients use, besides localhost and plain addresses."
    )
    api_key: SecretStr | None = Field(
        None, description="Key that every request must carry: Authorization: Bearer KEY, or X-API-Key."
    )
    insecure: bool = Field(
        False, description="Listen on an address other than the loopback without an API key."
    )

    model: str | None = Field(None, description="A model file, or a name of `ferkit models`.")
    detector: str | None = Field(None, description="The face detector, as of ferkit predict.")
    providers: tuple[str, ...] = Field((), description="ONNX Runtime execution providers, in order.")
    min_confidence: float = Field(
        0.0, ge=0, le=1, description="Below this probability the label is uncertain."
    )
    max_error: float | None = Field(
        None, gt=0, lt=1, description="Labels are uncertain where more of the others would be wrong."
    )
    prior: str | None = Field(
        None, description="How frequent the labels are: training, uniform, or a TOML file."
    )

    workers: int | None = Field(
        None, ge=1, description="Threads that compute, one core each; by default one per core."
    )
    waiting: int = Field(32, ge=0, description="Requests that may wait for a thread; more get 503.")
    client_requests: int = Field(16, ge=1, description="Requests in flight per client address; more get 429.")
    connections: int = Field(512, ge=1, description="Open connections; more are closed at once.")
    request_seconds: float = Field(30, gt=0, description="Longest time from body to response; then 503.")
    body_seconds: float = Field(20, gt=0, description="Longest pause while headers or a body arrive.")
    shutdown_seconds: int = Field(20, ge=0, description="Time to finish requests when the server stops.")

    body_mib: float = Field(32, gt=0, description="Largest body of /v1/predict, in MiB.")
    photos: int = Field(16, ge=1, description="Photos in one request.")
    pixels: int = Field(50_000_000, ge=1, description="Pixels of a photo or of a frame of a clip.")
    faces: int = Field(200, ge=1, description="Faces in a picture.")

    streams: int = Field(4, ge=0, description="Webcam streams at a time.")
    frame_mib: float = Field(2, gt=0, description="Largest frame of a stream, in MiB.")
    frame_pixels: int = Field(2_500_000, ge=1, description="Pixels of a frame of a stream.")
    stream_idle_seconds: float = Field(60, gt=0, description="A stream without frames is closed then.")

    clip_mib: float = Field(512, gt=0, description="Largest clip, in MiB.")
    clip_seconds: float = Field(1800, gt=0, description="Longest clip, in seconds.")
    clip_frames: int = Field(60_000, ge=1, description="Most frames of a clip.")
    job_seconds: float = Field(3600, gt=0, description="Longest time that one job may compute.")
    jobs_waiting: int = Field(20, ge=0, description="Jobs that may wait; more get 503.")
    jobs_kept: int = Field(100, ge=1, description="Finished jobs that are kept; the oldest goes first.")
    job_hours: float = Field(1, gt=0, description="Hours until a finished job and its results expire.")
    job_workers: int = Field(1, ge=0, description="Processes that run jobs; 0 leaves them to other machines.")
    queue: str | None = Field(
        None, description="redis://HOST:PORT/DB: share jobs between machines; by default an SQLite file."
    )
    jobs_folder: Path | None = Field(
        None, description="Folder of jobs (with Redis: one that all machines share); by default in the cache."
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="What is logged.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("queue")
    @classmethod
    def _check_queue(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("the queue is a URL such as redis://localhost:6379/0")
        return value

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @cached_property
    def folder(self) -> Path:
        """The folder of jobs."""
        return self.jobs_folder or cache_folder() / "jobs"

    @cached_property
    def threads(self) -> int:
        """Number of computing threads."""
        from ferkit.core.runtime import usable_cores

        return self.workers or usable_cores()


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """Return the settings of flags, environment and TOML file.

    ``config`` is the TOML file, by default the one that ``FERKIT_CONFIG`` names, if any; ``given`` outranks
    both.

    Raises:
        FerkitError: If the file cannot be read, a setting is unknown or out of range, or the service would be
            open to other machines without an API key.
    """
    file = config or os.environ.get(CONFIG)
    if file and not os.path.isfile(file):  # noqa: PTH113
        raise FerkitError(f"there is no settings file {file}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        settings = FromFile(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "a setting"
        received = "" if name in ("api_key", "queue") else f". Received: {first['input']!r}"
        raise FerkitError(f"setting {name}: {first['msg']}{received}") from error
    except ValueError as error:  # no valid TOML, or a list in the environment that is no JSON
        raise FerkitError(f"cannot read the settings: {error}") from error
    if settings.api_key is not None and not settings.api_key.get_secret_value().isascii():
        raise FerkitError("the API key may hold only ASCII characters, as HTTP headers do")
    if settings.api_key is not None and len(settings.api_key.get_secret_value()) < 8:
        raise FerkitError("the API key needs at least 8 characters; `openssl rand -hex 16` makes one")
    if not settings.loopback and settings.api_key is None and not settings.insecure:
        raise FerkitError(
            f"{settings.host} can be reached by other machines, so an API key is needed: set FERKIT_API_KEY, "
            "or allow everybody with --insecure"
        )
    return settings
