"""A gateway whose callers say themselves what they may see: `python -m tests.support.gateway_of_callers`.

It is the gateway with another `Access`. No setting of the gateway can do this: who may choose what they see is not restricted.
"""

import sys

from starlette.types import Scope

from gantry_gateway.main import open_gateway
from gantry_gateway.settings import GatewaySettings
from gantry_runtime.callers import ANONYMOUS, Caller
from gantry_runtime.process import Process, run

MAY_SEE = "X-Test-May-See"
"""Header field with Study Instance UIDs, separated by spaces; "none" for none. Without it a request is ANONYMOUS's."""


class SaidByTheCaller:
    """Access: what the header says."""

    async def caller_of(self, scope: Scope) -> Caller:
        """See Access."""
        for name, value in scope["headers"]:
            if name == MAY_SEE.lower().encode():
                studies = [uid for uid in value.decode("ascii").split() if uid != "none"]
                return Caller("tester", "TESTER", ("reader",), frozenset(studies))
        return ANONYMOUS


async def open_with_callers(process: Process, settings: GatewaySettings) -> None:
    """Open the gateway with `SaidByTheCaller`."""
    await open_gateway(process, settings, SaidByTheCaller())


if __name__ == "__main__":
    sys.exit(run("gateway", GatewaySettings, open_with_callers))
