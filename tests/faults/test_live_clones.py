"""Two machines with one node's disk that are on at the same time, and push each other off."""

from fleet.errors import Reason
from tests.faults.test_clones import copy_of
from tests.integration.installation import Installation
from tests.integration.waiting import eventually


async def test_two_machines_that_push_each_other_off_are_found_out(quick: Installation) -> None:
    node = await quick.add_node("n-1")
    await node.stop()
    clone = copy_of(node, quick, "clone")
    await node.start()
    await clone.start(wait_live=False)
    try:
        await eventually(
            lambda: Reason.QUARANTINED in (node.link.last_refusal, clone.link.last_refusal), "one of them is refused"
        )
        view = await quick.owner.node("n-1")
        assert (view.state, view.online) == ("QUARANTINED", False)
    finally:
        await clone.stop()
