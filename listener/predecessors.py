"""Sessions that an earlier life of the listener handed over: they still count against the limits.

Called by `manager` at start. Asks `session` for them, and again every few seconds until the last is over. Only latency
depends on it: while `session` does not answer, nothing is known and the door opens all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container

from bus.catalogue import ListLive
from bus.errors import BusError
from bus.manager import Node
from listener.admission import Admission, Ticket

_ANSWER_S = 2.0
_AGAIN_S = 2.0


async def count(
    node: Node, admission: Admission, own: Container[str], asked: asyncio.Event, advance: Callable[[], None]
) -> None:
    """Enter earlier sessions and let each leave when it is over; `asked` is set once `session` had its chance."""
    earlier: dict[str, Ticket] | None = None
    while earlier is None or earlier:
        try:
            live = await _live(node)
        except BusError:
            live = None
        if live is not None and earlier is None:
            earlier = {name: ticket for name, ticket in live.items() if name not in own}
            for ticket in earlier.values():
                admission.enter(ticket)
        elif live is not None and earlier:
            for name in earlier.keys() - live.keys():
                admission.leave(earlier.pop(name))
            advance()
        asked.set()
        if earlier != {}:
            await asyncio.sleep(_AGAIN_S)


async def _live(node: Node) -> dict[str, Ticket]:
    answer = await node.call("session", ListLive(), timeout_s=_ANSWER_S)
    identities = [session.identity for session in answer.sessions]
    return {identity.id: Ticket(identity.id, identity.service, identity.source.address) for identity in identities}
