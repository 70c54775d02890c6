"""The connector that does nothing: it tells what it would have been told to do."""

from armature.connectors.census import fleet_of
from armature.connectors.connector import Observed, Order, Outcome, Reach, Workers


class AdviceConnector:
    """Sees the workers of the cell and leaves them alone; whoever scales them by hand is seen to do so."""

    name = "advice"
    reach = Reach.TELLS

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def observe(self) -> Observed:
        """Those who have registered; nothing is known of others that start."""
        return Observed(fleet_of(self._workers.members()))

    async def apply(self, order: Order) -> Outcome:
        """Nothing is done."""
        return Outcome()

    async def close(self) -> None:
        """There is nothing to let go of."""
