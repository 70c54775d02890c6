"""A process that behaves as a service does towards its supervisor, or misbehaves: `fake_service.py BEHAVIOUR NAME`.

What happens to it is appended to the file in $FAKE_JOURNAL.
"""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

JOURNAL = Path(os.environ["FAKE_JOURNAL"])


class Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        listed = {"models": ["fake"]} if self.path == "/health" else {"data": [{"id": "fake"}]}
        body = json.dumps(listed).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def note(text: str) -> None:
    with JOURNAL.open("a") as journal:
        journal.write(text + "\n")


def main(behaviour: str, name: str, *flags: str) -> int:
    stopping = threading.Event()

    def stop(*_: object) -> None:
        note(f"{name} told to stop")
        if behaviour != "deaf":
            stopping.set()

    signal.signal(signal.SIGTERM, stop)
    note(f"{name} starts")
    if behaviour == "refuse":
        print("loading", flush=True)
        print(f"{name}: the moon is not full: wait for it", file=sys.stderr)
        return 1
    if behaviour == "mute":
        stopping.wait()
        return 0
    http = ""
    if name == "gateway":
        port = next((int(flag.partition("=")[2]) for flag in flags if flag.startswith("--http-port=")), 0)
        server = ThreadingHTTPServer(("127.0.0.1", port), Gateway)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        http = f" http=127.0.0.1:{server.server_port}"
    print(f"READY {name} {name}-{os.getpid()} grpc=127.0.0.1:1 metrics={http}", flush=True)
    stopping.wait()
    note(f"{name} ends")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
