"""How commands get into a cell that asks for keys, or has a certificate that only its owner has signed."""

import argparse
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from armature.cli.state import CellState
from armature.runtime.errors import StartError
from armature.runtime.settings import CommonSettings, SettingsError, load
from armature.runtime.tls import TlsFiles

KEY_ENV = "ARMATURE_API_KEY"


@dataclass(frozen=True)
class Access:
    """What an HTTP client is told."""

    key: str = field(default="", repr=False)
    verify: ssl.SSLContext | bool = True

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


ANYBODY = Access()


def add_access(parser: argparse.ArgumentParser, *, with_key: bool = True) -> None:
    """Options of commands that talk to a gateway."""
    if with_key:
        text = f"file that holds the API key (default: the environment's {KEY_ENV}, if it is set)"
        parser.add_argument("--key-file", type=Path, metavar="FILE", help=text)
    text = "PEM certificates of who signed the gateway's (default: those that this machine trusts)"
    parser.add_argument("--ca", type=Path, metavar="FILE", help=text)


def access_of(args: argparse.Namespace, cell: CellState | None = None) -> Access:
    """What the command line and the environment say; a key itself is no option, since others can see command lines.

    Raises:
        StartError: a file can't be used.
    """
    return Access(_key(args.key_file), verify_by(args.ca, cell))


def _key(path: Path | None) -> str:
    try:
        return (path.read_text() if path else os.environ.get(KEY_ENV, "")).strip()
    except OSError as error:
        raise StartError(f"can't read the API key in {path} ({error.strerror}): pass another --key-file") from error


def verify_by(ca: Path | None, cell: CellState | None = None) -> ssl.SSLContext | bool:
    """What an HTTP client checks certificates by; the one of a cell's own gateway is known by its file.

    Raises:
        StartError: the file can't be used.
    """
    own = cell.certificate if cell is not None and ca is None else ""
    if not (ca or own):
        return True
    try:
        context = ssl.create_default_context(cafile=ca or own)
    except OSError as error:
        raise StartError(f"can't use the certificates in {ca or own} ({error}): pass another --ca") from error
    if own:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False  # it is this very certificate, whatever it says where it serves
    return context


def tls_files(settings: Mapping[str, str]) -> TlsFiles | None:
    """The files of mutual TLS that services with these settings use, as they find them; None: they use none.

    Raises:
        StartError: the settings contradict each other.
    """
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items() if key.startswith("tls_")]
    try:
        found = load(CommonSettings, flags, prog="armature").tls
    except SettingsError as error:
        raise StartError(str(error)) from error
    if found is None:
        return None
    return TlsFiles(found.cert.resolve(), found.key.resolve(), found.ca.resolve(), found.name)
