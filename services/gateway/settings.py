"""What a gateway can be told."""

from dataclasses import dataclass, fields
from pathlib import Path

from armature.openai.serving.http.certificate import Certificate
from armature.openai.serving.http.seats import SeatOptions
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.responses.store import StoreOptions
from armature.runtime.connection_age import ConnectionAge
from armature.runtime.redis_client import RedisSettings
from armature.runtime.settings import option


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(RedisSettings):
    """A gateway: serves the OpenAI API over HTTP and `armature.v1.Inference` over gRPC."""

    http_host: str = option("127.0.0.1", help="address of the HTTP port; 0.0.0.0 to be reached from other machines")
    http_port: int = option(8000, help="HTTP port; 0 takes a free one, which the READY line tells")
    http_tls_cert: Path | None = option(None, help="PEM certificate chain; with http_tls_key the HTTP port is HTTPS")
    http_tls_key: Path | None = option(None, help="PEM private key of http_tls_cert; both are read again when changed")
    processes: int = option(1, help="gateways on the HTTP port, each a process; raise it when one core is not enough")
    grpc_connection_age_s: float = option(
        3600.0, help="age at which gRPC clients are asked to connect anew; raise it for KServe streams that last longer"
    )
    http_reuse_port: bool = option(
        False, help="share the HTTP port with other gateways of this machine that do so; the kernel spreads connections"
    )
    keys: str = option(
        "", help="YAML file of API keys and tenants, or `etcd` for those of the cell; empty lets everybody in as one"
    )
    admin_key: str = option(
        "", help="opens /admin/, which tells usage and makes keys; empty: nothing does", secret=True
    )
    tokenizer: tuple[str, ...] = option(
        (), help="MODEL=DIRECTORY, where this gateway finds a model's tokenizer if not at the path that workers tell"
    )
    max_concurrent_requests: int = option(1024, help="requests served at once, beyond is 429; lower it to save memory")
    max_connections: int = option(8192, help="HTTP connections of a process, beyond is 503; raise it for more clients")
    max_connections_per_address: int = option(0, help="of one IP address, if above 0; set it if no proxy is in front")
    max_body_bytes: int = option(8 * 1024 * 1024, help="largest request body; raise it for very long prompts")
    max_body_bytes_in_all: int = option(512 * 1024 * 1024, help="all bodies at once; raise it for many long prompts")
    request_timeout_s: float = option(600.0, help="time for a whole answer; raise it for slow models and long answers")
    first_token_timeout_s: float = option(120.0, help="time to the first token; raise it for very long prompts")
    stall_timeout_s: float = option(30.0, help="silence after which a worker counts as stuck and its request moves")
    body_timeout_s: float = option(30.0, help="time for a client to send its request")
    write_timeout_s: float = option(30.0, help="time for a client to take its answer before it counts as gone")
    route_timeout_s: float = option(2.0, help="time for a router to answer before this gateway decides itself")
    limits_timeout_s: float = option(
        0.05, help="time for Redis to tell whether a tenant is within its limits before this gateway decides itself"
    )
    router_retry_s: float = option(1.0, help="pause before a router that failed is asked again")
    router_port_retry_s: float = option(30.0, help="pause before a router's blocked port for streams is tried again")
    migration_limit: int = option(3, help="how often a request may move to another worker; 0: never")
    max_buffered_bytes: int = option(
        256 * 1024, help="what may wait for a slow client before it is given up; raise it for many log probabilities"
    )
    model_memory_s: float = option(300.0, help="how long a model whose workers are gone is 503 instead of 404")
    request_log: Path | None = option(None, help="write a JSON line for every request, for `armature simulate`")
    request_log_max_bytes: int = option(256 * 1024 * 1024, help="size at which the log starts anew; twice that is kept")
    response_ttl_s: float = option(604800.0, help="how long an unused response is kept; raise it for slow talks")
    max_response_bytes: int = option(1024 * 1024, help="largest input of a response that is kept; raise it with Redis")
    local_response_bytes: int = option(
        64 * 1024 * 1024, help="memory for responses without Redis; raise it if conversations are lost"
    )
    max_background_responses: int = option(256, help="responses in the background at once; lower it to save memory")
    max_speculative_prefills: int = option(8, help="next turns prefilled ahead at once; 0 ignores that hint")
    inline_tokenize_s: float = option(
        0.002, help="prompts that take longer to tokenize do so on a thread; lower it if the loop lags"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.http_port <= 65535:
            raise ValueError("http_port must be a port number")
        if self.admin_key and len(self.admin_key) < 16:
            raise ValueError("admin_key must have 16 characters or more: others can guess it otherwise")
        if (self.http_tls_cert is None) != (self.http_tls_key is None):
            raise ValueError("http_tls_cert and http_tls_key must be set together")
        if self.processes < 1:
            raise ValueError("processes must be at least 1")
        if self.processes > 1 and (self.port or self.metrics_port > 0):
            raise ValueError("processes above 1 need ports of their own: port and metrics_port must be 0")
        if self.grpc_connection_age_s <= 0:
            raise ValueError("grpc_connection_age_s must be above 0")
        if self.request_log_max_bytes < 1:
            raise ValueError("request_log_max_bytes must be above 0")
        for entry in self.tokenizer:
            model, equals, directory = entry.partition("=")
            if not (model and equals and directory):
                raise ValueError("tokenizer must be a list of MODEL=DIRECTORY")
        _ = self.serving, self.store, self.seats

    @property
    def max_request_bytes(self) -> int:
        return self.max_body_bytes

    @property
    def connection_age(self) -> ConnectionAge:
        """Every answer that has been begun has time to end."""
        return ConnectionAge(self.grpc_connection_age_s, self.request_timeout_s)

    @property
    def certificate(self) -> Certificate | None:
        """The HTTP port's, read now; None: it speaks plain HTTP."""
        if self.http_tls_cert is None or self.http_tls_key is None:
            return None
        return Certificate(self.http_tls_cert, self.http_tls_key)

    @property
    def seats(self) -> SeatOptions:
        """How many may be connected, checked."""
        return SeatOptions(self.max_connections, self.max_connections_per_address)

    @property
    def serving(self) -> ServingOptions:
        """The bounds and times, checked."""
        return ServingOptions(**{field.name: getattr(self, field.name) for field in fields(ServingOptions)})

    @property
    def store(self) -> StoreOptions:
        """What is kept of responses, checked."""
        return StoreOptions(**{field.name: getattr(self, field.name) for field in fields(StoreOptions)})

    @property
    def tokenizers(self) -> dict[str, Path]:
        """Tokenizer directories by model name."""
        entries = (entry.partition("=") for entry in self.tokenizer)
        return {model: Path(directory) for model, _, directory in entries}
