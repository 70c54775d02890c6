"""How a call to etcd is made: which endpoint, as which user, until when, and what happens if it does not answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc

from armature.runtime.etcd_endpoint import Endpoint
from armature.runtime.etcd_errors import EtcdAuthError, EtcdError, EtcdUnavailableError, OutcomeUnknownError, translate
from armature.third_party.etcd.v3 import etcd_pb2 as pb

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a call: where it goes, who we are there, and when it must be over (event loop time)."""

    endpoint: Endpoint
    metadata: tuple[tuple[str, str], ...]
    give_up_at: float

    @property
    def timeout_s(self) -> float:
        return max(0.0, self.give_up_at - asyncio.get_running_loop().time())


class Calls:
    """Tries each endpoint once, beginning with the one that answered last, and authenticates where needed.

    Raises:
        EtcdError: there is no endpoint.
    """

    def __init__(self, endpoints: Sequence[Endpoint], user: str, password: str) -> None:
        if not endpoints:
            raise EtcdError("no etcd endpoint is named; set `etcd` to host:port")
        self._endpoints = endpoints
        self._current = 0
        self._user = user
        self._password = password
        self._token = ""
        self._authenticating = asyncio.Lock()

    @property
    def endpoint(self) -> Endpoint:
        """Where the next call goes first."""
        return self._endpoints[self._current]

    def avoid(self, endpoint: Endpoint) -> None:
        """Move on to the next endpoint, unless another caller already did."""
        if endpoint is self.endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    async def make(self, call: Callable[[Attempt], Awaitable[Answer]], doing: str, timeout_s: float) -> Answer:
        """Run `call`, on one endpoint after the other, within `timeout_s` together.

        Raises:
            EtcdUnavailableError: none answered; each gets an equal share of the time.
            OutcomeUnknownError: `call` raised it; no other endpoint is tried.
            EtcdError: etcd refused.
        """
        failures: list[str] = []
        for _ in self._endpoints:
            endpoint = self.endpoint
            give_up_at = asyncio.get_running_loop().time() + timeout_s / len(self._endpoints)
            try:
                return await self.make_at(endpoint, call, doing, give_up_at)
            except OutcomeUnknownError:
                self.avoid(endpoint)
                raise
            except EtcdUnavailableError as error:
                self.avoid(endpoint)
                failures.append(str(error))
        raise EtcdUnavailableError(" | ".join(failures))

    async def make_at(
        self, endpoint: Endpoint, call: Callable[[Attempt], Awaitable[Answer]], doing: str, give_up_at: float
    ) -> Answer:
        """Run `call` at one endpoint; if our token has ended, get another and run it again, once.

        Raises:
            EtcdError: etcd refused or did not answer.
        """
        while True:
            token = self._token
            try:
                return await call(await self._attempt(endpoint, give_up_at))
            except grpc.aio.AioRpcError as error:
                failure = translate(error, endpoint.address, doing)
            # Without a token the refusal is about user and password, which another try does not change.
            if not token or not isinstance(failure, EtcdAuthError):
                raise failure
            self.forget_token(token)

    def forget_token(self, token: str | None = None) -> None:
        """Authenticate anew before the next call, unless another caller already did and the token is another."""
        if token in (None, self._token):
            self._token = ""

    async def _attempt(self, endpoint: Endpoint, give_up_at: float) -> Attempt:
        # Without this a member that is cut off from the others would hold the request until its deadline.
        leader_only = (("hasleader", "true"),)
        anonymous = Attempt(endpoint, leader_only, give_up_at)
        if not self._user:
            return anonymous
        async with self._authenticating:
            if not self._token:
                self._token = await self._authenticate(anonymous)
        if not self._token:
            return anonymous
        return Attempt(endpoint, (*leader_only, ("token", self._token)), give_up_at)

    async def _authenticate(self, attempt: Attempt) -> str:
        request = pb.AuthenticateRequest(name=self._user, password=self._password)
        try:
            stub = attempt.endpoint.auth
            answer = await stub.Authenticate(request, timeout=attempt.timeout_s, metadata=attempt.metadata)
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" not in (error.details() or ""):
                raise
            log.warning("etcd at %s asks nobody for a password, yet a user is set", attempt.endpoint.address)
            return ""
        return answer.token
