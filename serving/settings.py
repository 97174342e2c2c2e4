"""Every knob of the server as one typed, frozen object; `graft serve` fills it from its flags."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, le=3600)]
Count = Annotated[int, Field(ge=1)]
MIB = 2**20
MAX_HEAD_BYTES = 64 * 1024  # of a request's line and headers, or of a call's metadata


class Section(BaseModel):
    """A frozen group of settings that knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Batching(Section):
    """How waiting pictures are joined into one run."""

    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 32  # where VGG16 on a CPU stops gaining
    # A fixed delay is what a lone client pays for: batch what waits while the model is busy, else for nobody.
    max_queue_delay: Seconds = 0.0
    max_queue_size: Count = 512  # pictures that may wait; more are answered 503
    deadline: Seconds = 30.0  # seconds a picture may wait for its turn when its request names no timeout


class Limits(Section):
    """What one client may ask for."""

    max_body_bytes: Count = 32 * MIB
    max_pixels: Count = 50_000_000  # of one encoded picture, checked before it is decoded
    max_pictures: Count = 64  # in one request for people
    # For a head to arrive, for a body to arrive, and for a client that does not read its answer.
    patience: Annotated[float, Field(gt=0, le=3600)] = 30.0
    max_connections: Count = 2048


class Security(Section):
    """Who may ask. Without keys everybody who can reach the port may."""

    api_keys: frozenset[str] = frozenset()
    cors_origins: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    # Loading and unloading by request; None allows it on loopback or with keys.
    control: bool | None = None


class Monitoring(Section):
    """What is kept of the traffic: sums always, pictures only when a folder is named."""

    folder: Path | None = None  # where the retraining flow reads the sums
    write_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    sample_folder: Path | None = None
    sample_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    sample_limit: Count = 1000  # files kept; the oldest go first


class Settings(Section):
    """The whole server."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None  # no port is opened that nobody asked for
    provider: str = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    follow_seconds: Seconds = 0.0  # look for new versions this often; 0 only when asked
    drain_seconds: Seconds = 1.0  # after SIGTERM: not ready, still answering, so that balancers look away
    shutdown_seconds: Seconds = 30.0  # for requests under way at the end
    access_log: bool = True
    batching: Batching = Batching()
    limits: Limits = Limits()
    security: Security = Security()
    monitoring: Monitoring = Monitoring()

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def control_allowed(self) -> bool:
        """Whether requests may load and unload models."""
        if self.security.control is not None:
            return self.security.control
        return self.on_loopback or bool(self.security.api_keys)
