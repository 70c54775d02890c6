"""Composes a gateway's console."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TypeVar

from armature.console.feed import Feed, Look
from armature.console.picture import Picture, Seen
from armature.console.routes import Console
from armature.console.shapes import Cell
from armature.console.sources import Sources
from armature.console.traffic import gateway_traffic
from armature.openai.serving.core import ServingCore
from armature.runtime.channels import ChannelPool
from armature.runtime.membership import MembershipView
from armature.runtime.runtime import Runtime
from armature.runtime.settings import CommonSettings

S = TypeVar("S", bound=CommonSettings)


def open_console(core: ServingCore, runtime: Runtime[S], members: MembershipView) -> Console:
    """The console of a gateway that knows these members."""
    traffic = gateway_traffic()
    runtime.tasks.create_task(traffic.run(), name="traffic")

    @asynccontextmanager
    async def open_() -> AsyncGenerator[Look, None]:
        sources = Sources(ChannelPool(runtime.settings.tls))
        picture = Picture(
            gateway_id=runtime.member_id, namespace=runtime.settings.namespace, version=metadata.version("armature")
        )

        async def look() -> Cell:
            await sources.ask(members.members.values())
            there = [*members.members.values()]
            return picture.draw(Seen(wall_s=time.time(), members=there, is_stale=members.is_stale, heard=sources.heard))

        try:
            yield look
        finally:
            await sources.close()

    feed = Feed(open_, traffic, lambda looking: runtime.tasks.create_task(looking, name="console"))
    return Console(feed, lambda: members.of_kind("router"), runtime.channels)
