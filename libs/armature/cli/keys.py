"""`armature keys`: makes, lists and revokes API keys through a gateway that has an admin key."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from armature.cli.access import add_access, verify_by
from armature.cli.arguments import add_place
from armature.cli.attach import find_cell
from armature.runtime.errors import StartError

ADMIN_KEY_ENV = "ARMATURE_ADMIN_KEY"
TIMEOUT_S = 10.0


def add_keys(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Options of `armature keys`."""
    text = "make, list and revoke API keys"
    about = f"{text[0].upper()}{text[1:]}. The gateway's admin key is taken from the environment's {ADMIN_KEY_ENV}."
    command = add_parser("keys", help=text, description=about, allow_abbrev=False)
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key, which is shown once", allow_abbrev=False)
    create.add_argument("tenant", metavar="TENANT", help="whose it is")
    create.add_argument("--name", default="", help="what it is for, to tell it from others")
    create.add_argument("--expires-at", default=None, metavar="TIME", help="like 2031-01-01T00:00:00Z (default: never)")
    revoke = actions.add_parser("revoke", help="refuse a key from now on", allow_abbrev=False)
    revoke.add_argument("id", metavar="ID", help="the key's first 12 characters")
    for action, run in ((create, _create), (actions.add_parser("list", help="all keys"), _list), (revoke, _revoke)):
        action.set_defaults(run=run)
        action.add_argument("--url", default="", help="of the gateway (default: that of the running cell)")
        add_access(action, with_key=False)
        add_place(action)


def _create(args: argparse.Namespace, console: Console) -> int:
    fields = {"tenant": args.tenant, "name": args.name, "expires_at": args.expires_at}
    made = _ask(args, "POST", "/admin/keys", fields)
    console.print(made["key"], highlight=False, markup=False, soft_wrap=True)
    console.print(f"key {made['id']} of {escape(made['tenant'])}; it is not shown again", style="dim", highlight=False)
    return 0


def _list(args: argparse.Namespace, console: Console) -> int:
    for key in _ask(args, "GET", "/admin/keys")["data"]:
        ends = f", until {key['expires_at']}" if key["expires_at"] else ""
        console.print(f"{key['id']}  {key['tenant']}  {key['name']}{ends}", highlight=False, markup=False)
    return 0


def _revoke(args: argparse.Namespace, console: Console) -> int:
    _ask(args, "DELETE", f"/admin/keys/{args.id}")
    console.print(f"key {args.id} is revoked", highlight=False, markup=False)
    return 0


def _ask(args: argparse.Namespace, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    key = os.environ.get(ADMIN_KEY_ENV, "")
    if not key:
        raise StartError(f"set {ADMIN_KEY_ENV} to the gateway's --admin-key")
    cell = None if args.url else find_cell(args.state_dir / args.namespace)
    url = cell.url if cell is not None else args.url.rstrip("/")
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, verify=verify_by(args.ca, cell), timeout=TIMEOUT_S) as client:
            answer = client.request(method, path, json=body)
        told: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise StartError(f"no gateway answers on {url} ({error}): see --url and --ca") from error
    if answer.is_error:
        raise StartError(f"the gateway refused ({answer.status_code}): {told['error']['message']}")
    return told
