"""One client's open stream and the requests on it, each until the engine has forgotten it."""

import asyncio
from dataclasses import dataclass, field

from opentelemetry.trace import Span

from armature.engines.host.fetch import FetchReport
from armature.engines.host.tiers.onboarder import OnboardReport
from armature.engines.host.token_stream import TokenStream
from armature.v1.worker_pb2 import DecodeRequest


@dataclass(slots=True, eq=False)
class ClientStream:
    """One open `Decode.Stream` and the requests on it that have not ended."""

    tokens: TokenStream = field(default_factory=TokenStream)
    live: dict[int, "Generation"] = field(default_factory=dict[int, "Generation"])


@dataclass(slots=True, eq=False)
class Generation:
    """One request, until the engine has forgotten it."""

    engine_id: str
    stream_id: int
    stream: ClientStream | None
    """None once the client has been told the end."""
    request: DecodeRequest
    prompt_tokens: int
    next_index: int
    """Of the output token that comes next."""
    span: Span
    timer: asyncio.TimerHandle | None = None
    fetching: asyncio.Task[None] | None = None
    report: FetchReport | OnboardReport | None = None
    onboarding: OnboardReport | None = None
    cached_tokens: int = -1
    """-1 until the first token."""

    @property
    def has_ended(self) -> bool:
        """Whether the client has been told the end."""
        return self.stream is None
