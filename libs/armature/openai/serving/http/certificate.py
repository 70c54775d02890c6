"""The HTTP port's certificate, taken over when its files change.

Renewed files count for connections that are opened after that; files that don't fit together change nothing.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from armature.runtime.errors import StartError

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 5.0


class Certificate:
    """A chain and its private key, PEM files. TLS 1.2 at least.

    Raises:
        StartError: the files can't be used.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = (chain, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._seen = self._state()
            self._load()
        except OSError as error:  # ssl.SSLError is one
            raise StartError(f"can't use http_tls_cert {chain} with http_tls_key {key}: {_why(error)}") from error

    async def follow(self, interval_s: float = LOOK_INTERVAL_S) -> None:
        """Take over renewed files until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                state = self._state()
                if state != self._seen:
                    self._seen = state
                    self._load()
                    log.info("the certificate of the HTTP port was renewed")
            except OSError as error:
                log.error("the certificate of the HTTP port stays as it was: %s", _why(error))

    def _load(self) -> None:
        # On a context of its own first: one that is in use would be left with half of a pair that does not fit.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
        self.context.load_cert_chain(*self._files)

    def _state(self) -> list[tuple[int, int, int]]:
        states = [path.stat() for path in self._files]
        return [(state.st_ino, state.st_mtime_ns, state.st_size) for state in states]


def _why(error: OSError) -> str:
    return error.strerror or str(error)
