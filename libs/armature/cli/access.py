"""How commands get into a cell that asks for keys, or has a certificate that only its owner has signed."""

import argparse
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from armature.runtime.errors import StartError

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


def access_of(args: argparse.Namespace) -> Access:
    """What the command line and the environment say; a key itself is no option, since others can see command lines.

    Raises:
        StartError: a file can't be used.
    """
    return Access(_key(args.key_file), verify_by(args.ca))


def _key(path: Path | None) -> str:
    try:
        return (path.read_text() if path else os.environ.get(KEY_ENV, "")).strip()
    except OSError as error:
        raise StartError(f"can't read the API key in {path} ({error.strerror}): pass another --key-file") from error


def verify_by(ca: Path | None) -> ssl.SSLContext | bool:
    """What an HTTP client checks certificates by.

    Raises:
        StartError: the file can't be used.
    """
    try:
        return ssl.create_default_context(cafile=ca) if ca else True
    except OSError as error:
        raise StartError(f"can't use the certificates in {ca} ({error}): pass another --ca") from error
