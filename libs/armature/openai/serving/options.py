"""Bounds and times of the gateway, as one value."""

from dataclasses import dataclass

_MAY_BE_ZERO = ("migration_limit", "max_speculative_prefills", "inline_tokenize_s", "model_memory_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """Raises ValueError for values that can't work."""

    max_concurrent_requests: int = 1024
    """Requests beyond are refused with 429 at once: a queue here would only hide the load from the router."""
    max_body_bytes: int = 8 * 1024 * 1024
    max_body_bytes_in_all: int = 512 * 1024 * 1024
    """Of requests that are read or being answered; a prompt of 128,000 tokens takes about 0.5 MiB."""
    request_timeout_s: float = 600.0
    first_token_timeout_s: float = 120.0
    stall_timeout_s: float = 30.0
    """Silence after which a request is moved to another worker; for the first token, the prediction counts on top."""
    body_timeout_s: float = 30.0
    """Time for a client to send its request."""
    write_timeout_s: float = 30.0
    """Time for a client to take what was written, before it counts as gone."""
    route_timeout_s: float = 2.0
    """Time for a router to answer before the gateway decides itself."""
    router_retry_s: float = 1.0
    """Pause before a router that failed is asked again."""
    router_port_retry_s: float = 30.0
    """Pause before a router's port for streams that was out of reach is tried again."""
    migration_limit: int = 3
    max_buffered_bytes: int = 256 * 1024
    """What a request may have waiting for a slow client; a token takes 15 bytes, with 20 log probabilities 240."""
    model_memory_s: float = 300.0
    """How long a model without workers is still known: 503 with Retry-After instead of 404."""
    max_speculative_prefills: int = 8
    """Next turns that are prefilled ahead at the same time; beyond that they are not."""
    inline_tokenize_s: float = 0.002
    """Prompts that take longer to tokenize do so on a thread, which by itself costs a tenth of a millisecond."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
                raise ValueError(f"{name} is {value}; it must be above 0")
        if self.max_body_bytes_in_all < 2 * self.max_body_bytes:
            raise ValueError("max_body_bytes_in_all must be at least twice max_body_bytes, or no large request fits")
