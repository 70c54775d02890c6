"""The `armature` command: parses the command line and hands over."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from armature.cli.access import access_of
from armature.cli.arguments import DEFAULTS, Parser, add_chat, add_down, add_place, add_up, up_options
from armature.cli.attach import down, find_cell, status
from armature.cli.chat import Chat
from armature.cli.deployment.command import add_plan
from armature.cli.explain import add_explain
from armature.cli.keys import add_keys
from armature.cli.offload_bench import add_offload_bench
from armature.cli.options import UsageError
from armature.cli.planner import add_planner
from armature.cli.rehearse import add_rehearse
from armature.cli.simulate import add_simulations
from armature.cli.state import CellState
from armature.cli.up import up
from armature.runtime.errors import StartError

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
_GOODBYES = ("/exit", "/quit", "exit", "quit")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for what failed or 2 for a wrong command line."""
    try:
        args = _parser().parse_args(argv)
        return args.run(args, Console())
    except UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    except StartError as error:
        return _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="armature", description="Serves language models with a cell of gRPC services on one machine.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run, add_options, text in (
        ("up", _up, add_up, "run a cell until Ctrl-C"),
        ("status", _status, None, "show the processes of a running cell"),
        ("down", _down, add_down, "stop a running cell"),
        ("chat", _chat, add_chat, "talk to a running cell"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        command.set_defaults(run=run)
        if add_options:
            add_options(command)
        add_place(command)
    add_explain(commands.add_parser)
    add_keys(commands.add_parser)
    add_planner(commands.add_parser)
    add_simulations(commands.add_parser)
    add_rehearse(commands.add_parser)
    add_plan(commands.add_parser)
    add_offload_bench(commands.add_parser)
    return parser


def _up(args: argparse.Namespace, console: Console) -> int:
    return up(up_options(args), console)


def _status(args: argparse.Namespace, console: Console) -> int:
    return status(args.state_dir / args.namespace, console)


def _down(args: argparse.Namespace, console: Console) -> int:
    return down(args.state_dir / args.namespace, console, args.timeout)


def _chat(args: argparse.Namespace, console: Console) -> int:
    cell = None if args.url else _cell(args)
    # Without one, where a cell would be by default, started from another folder perhaps.
    url = args.url.rstrip("/") or (cell.url if cell else f"http://{DEFAULTS.host}:{DEFAULTS.http_port}")
    sampling = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    chat = Chat(url, args.model, console, **sampling, access=access_of(args, cell))
    if args.prompt:
        chat.ask(args.prompt)
        return EXIT_OK
    console.print(f"{chat.model()} on {url}; Ctrl-D ends", style="dim", highlight=False)
    return _converse(chat)


def _converse(chat: Chat) -> int:
    """Question by question until the end of input; an answer that fails or is interrupted ends nothing."""
    while True:
        try:
            prompt = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return EXIT_OK
        if prompt in _GOODBYES:
            return EXIT_OK
        if not prompt:
            continue
        try:
            chat.ask(prompt)
        except StartError as error:
            _fail(str(error), EXIT_FAILED)
        except KeyboardInterrupt:
            print("(interrupted)")


def _cell(args: argparse.Namespace) -> CellState | None:
    """The running cell, if there is one."""
    try:
        return find_cell(args.state_dir / args.namespace)
    except StartError:
        return None


def _fail(message: str, status: int) -> int:
    print(f"armature: {' '.join(message.split())}", file=sys.stderr)
    return status
