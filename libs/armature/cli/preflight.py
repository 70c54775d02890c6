"""What is asked of the machine before, and of the gateway after the services start."""

import asyncio
import errno
import socket

import httpx

from armature.runtime.errors import StartError
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError
from armature.runtime.tls import TlsFiles, etcd_tls

# A registered worker is in the gateway's list after one message from etcd.
MODEL_TIMEOUT_S = 30.0
ETCD_TIMEOUT_S = 3.0


def refuse_taken_port(host: str, port: int) -> None:
    """Tell about a taken port or a wrong host at once, not after the workers have loaded their model.

    Raises:
        StartError: nobody can listen there now.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        is_host_wrong = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        fix = (
            "another --host, 0.0.0.0 is all of this machine"
            if is_host_wrong
            else "another --http-port, 0 takes a free one"
        )
        raise StartError(f"can't serve HTTP on {host}:{port} ({error.strerror}): pass {fix}") from error


async def ask_etcd(endpoints: str, tls: TlsFiles | None = None) -> None:
    """Make sure that etcd answers before anything is started that needs it.

    Raises:
        StartError: it does not.
    """
    try:
        client = EtcdClient(endpoints.split(","), tls=etcd_tls(tls, endpoints), timeout_s=ETCD_TIMEOUT_S)
    except EtcdError as error:
        raise StartError(f"{error}: pass --etcd HOST:PORT, or leave it out") from error
    try:
        await client.get("/armature")
    except EtcdError as error:
        raise StartError(f"etcd at {endpoints} does not answer ({error}): start it, or leave out --etcd") from error
    finally:
        await client.close()


async def until_model_listed(url: str) -> None:
    """Wait until the gateway knows a worker: from then on it can answer.

    Raises:
        StartError: it knows none for too long.
    """
    # It is our own process: whether others can trust its certificate is not asked here.
    async with httpx.AsyncClient(timeout=2.0, verify=False) as client:
        try:
            async with asyncio.timeout(MODEL_TIMEOUT_S):
                while not await _has_model(client, url):  # noqa: ASYNC110 -- it is another process that changes
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise StartError(f"the gateway on {url} lists no model after {MODEL_TIMEOUT_S:g} s: see its log") from None


async def _has_model(client: httpx.AsyncClient, url: str) -> bool:
    try:
        answer = await client.get(f"{url}/health")  # which takes no key
        return bool(answer.json().get("models"))
    except (httpx.HTTPError, ValueError):
        return False
