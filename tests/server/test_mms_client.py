"""What MMS does only now and then: a server that answers as it was seen to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from aiohttp import web
from polyhost.engine.errors import EngineError
from polyhost.engine.mms_client import MmsClient

# Of MMS 1.1.11, for a DELETE that came just after the POST.
NO_THREAD_YET = (
    500, "InternalServerException",
    ('Cannot invoke "java.lang.Thread.shutdown()" because the return value of '
    '"com.amazonaws.ml.mms.wlm.Model.getServerThread()" is null'),
)  # fmt: skip
UNKNOWN = (404, "ModelNotFoundException", "Model not found: m1")
ENDING = (503, "ServiceUnavailableException", "No worker is available to serve request: m1")


def unregister(answers: Sequence[tuple[int, str, str]]) -> int:
    """How often MMS was asked until it was done. Raises what `MmsClient.unregister` raises."""
    left = list(answers)

    async def delete(_: web.Request) -> web.Response:
        status, kind, message = left.pop(0)
        return web.Response(status=status, text=json.dumps({"code": status, "type": kind, "message": message}))

    async def run() -> None:
        app = web.Application()
        app.router.add_delete("/models/m1", delete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = MmsClient(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await client.open()
        try:
            await client.unregister("m1")
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(run())
    return len(answers) - len(left)


DONE = (200, "", 'Model "m1" unregistered')


@pytest.mark.parametrize(
    ("answers", "times"),
    [([DONE], 1), ([UNKNOWN], 1), ([NO_THREAD_YET, DONE], 2), ([NO_THREAD_YET, NO_THREAD_YET, UNKNOWN], 3)],
)
def test_a_model_is_taken_out_while_mms_still_begins_it(answers: list[tuple[int, str, str]], times: int) -> None:
    assert unregister(answers) == times


def test_another_error_is_told_at_once() -> None:
    with pytest.raises(EngineError, match="No worker"):
        unregister([ENDING, DONE])
