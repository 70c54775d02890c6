"""Mutual TLS between the members of a cell: the same three files make a process both server and client."""

import ssl
from dataclasses import dataclass, replace
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

    def client_context(self) -> ssl.SSLContext:
        """The same for connections that are no channels.

        Raises:
            StartError: a file can't be read or holds something else.
        """
        return self._context(ssl.Purpose.SERVER_AUTH)

    def server_context(self) -> ssl.SSLContext:
        """The same as `server_credentials`, for connections that are not grpcio's.

        Raises:
            StartError: a file can't be read or holds something else.
        """
        return self._context(ssl.Purpose.CLIENT_AUTH)

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=self.ca)
            context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl's errors are among them
            raise StartError(f"can't use the TLS files {self.cert}, {self.key}, {self.ca}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        return context

    def channel_options(self) -> list[tuple[str, str]]:
        """What a channel needs besides the credentials."""
        return [("grpc.ssl_target_name_override", self.name)] if self.name else []


def etcd_tls(tls: TlsFiles | None, endpoints: str) -> TlsFiles | None:
    """The same files for etcd, where its endpoints ask for TLS. Its certificates carry their own addresses."""
    return replace(tls, name="") if tls is not None and "https://" in endpoints else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"can't read the TLS file {path}: {error.strerror}") from error
