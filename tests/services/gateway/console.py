"""A console in this process, over members that the test names."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from armature.console.feed import Feed, Look
from armature.console.picture import Picture, Seen
from armature.console.routes import Console
from armature.console.shapes import Cell
from armature.console.sources import Sources
from armature.console.traffic import gateway_traffic
from armature.openai.serving.core import ServingCore
from armature.runtime.channels import ChannelPool
from armature.v1.common_pb2 import Member


class Watched:
    """Counts who looks."""

    def __init__(self, core: ServingCore, tasks: asyncio.TaskGroup, members: Sequence[Member]) -> None:
        self.open = 0
        self._members = members
        routers = [member for member in members if member.kind == "router"]
        feed = Feed(self._opened, gateway_traffic(), tasks.create_task, interval_s=0.05)
        self.console = Console(feed, lambda: routers, ChannelPool())

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Look]:
        sources, picture = Sources(ChannelPool()), Picture(gateway_id="gateway-a", namespace="test", version="1")

        async def look() -> Cell:
            await sources.ask(self._members)
            return picture.draw(Seen(wall_s=time.time(), members=self._members, heard=sources.heard))

        self.open += 1
        try:
            yield look
        finally:
            self.open -= 1
            await sources.close()
