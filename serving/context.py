"""What every endpoint is given: the models, the settings, the page's figures, whether the end is near."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from serving.metrics import AnswerCounts
from serving.repository import Repository
from serving.settings import Settings

# Decoding lets go of the interpreter; two at a time bound its memory, whatever the number of requests.
DECODERS = 2


@dataclass
class Context:
    """The server's parts, made once."""

    settings: Settings
    repository: Repository
    http: AnswerCounts = field(default_factory=AnswerCounts)
    grpc: AnswerCounts = field(default_factory=AnswerCounts)
    decoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(DECODERS, "decode"))
    started: bool = False
    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self.started and not self.draining and self.repository.ready
