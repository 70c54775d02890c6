"""How old the connections of gRPC clients become."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionAge:
    """When clients are asked to connect anew, and how long calls may then go on before the connection is cut.

    A call whose handler has been given up stays with gRPC while its client neither reads nor leaves: nothing else
    that grpc.aio offers a server ends it. Clients connect anew by themselves, and where there are several servers
    they spread over them again.
    """

    age_s: float
    """A tenth more or less."""
    grace_s: float

    @property
    def options(self) -> tuple[tuple[str, int], ...]:
        return (
            ("grpc.max_connection_age_ms", round(self.age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", round(self.grace_s * 1000)),
        )
