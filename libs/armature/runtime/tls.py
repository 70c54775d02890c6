"""Mutual TLS between the members of a cell: the same three files make a process both server and client."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from armature.runtime.errors import StartError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: this member's certificate chain and key, and the authority that signed everybody's."""

    cert: Path
    key: Path
    ca: Path
    name: str = ""
    """The name that all certificates of the cell carry; empty if each carries its own address."""

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server that refuses clients without a certificate of the cell.

        Raises:
            StartError: a file can't be read.
        """
        pair = (_read(self.key), _read(self.cert))
        return grpc.ssl_server_credentials([pair], root_certificates=_read(self.ca), require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a client that talks only to members of the cell.

        Raises:
            StartError: a file can't be read.
        """
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def channel_options(self) -> list[tuple[str, str]]:
        """What a channel needs besides the credentials."""
        return [("grpc.ssl_target_name_override", self.name)] if self.name else []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"can't read the TLS file {path}: {error.strerror}") from error
