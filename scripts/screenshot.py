"""Take docs/pictures/dashboard.png: the dashboard of a server with many small models, after some minutes of traffic."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
from moto.server import ThreadedMotoServer

sys.path.insert(0, "tests")

from support import browser as browsers
from support.endpoint import EndpointServer, client

SAMPLES = Path("samples/models")
TO = Path("docs/pictures/dashboard.png")
CITIES = ("houston", "austin", "boston", "chicago", "denver", "miami", "new_york", "seattle")
CUSTOMERS = ("acme-realty", "bluebird", "harbor-homes", "northgate", "oak-and-stone", "summit-living")
MODELS = 2400
HOUSE = "1998,2150,3,2.5,0.4,2"
MEMORY = "8MiB"
BUCKET = "house-prices"
AWS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_REGION": "us-east-1"}
PER_SECOND = 60
WRONG = 0.002
WAVE_SECS = 45
# A few models get most of the requests.
SKEW = 1.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.2, help="of traffic before the picture is taken")
    parser.add_argument("--to", type=Path, default=TO)
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    url = "http://{}:{}".format(*moto.get_host_and_port())
    names = fill(client("s3", url))
    settings = ("--memory-budget", MEMORY, "--access-log", "off")
    server = EndpointServer("native", f"s3://{BUCKET}/models/", *settings, environ={**AWS, "AWS_ENDPOINT_URL_S3": url})
    over = threading.Event()
    traffic = threading.Thread(target=lambda: asyncio.run(call(server.url, names, over)))
    traffic.start()
    try:
        time.sleep(arguments.minutes * 60)
        take(server.url, arguments.to)
    except Exception:
        print(server.process.log[-4000:])
        raise
    finally:
        over.set()
        traffic.join()
        server.stop()
        moto.stop()


def fill(s3: Any) -> list[str]:
    """Sample models under names of many customers; the most used first."""
    names = []
    s3.create_bucket(Bucket=BUCKET)
    archives = {city: (SAMPLES / f"{city}.tar.gz").read_bytes() for city in CITIES}
    for number in range(MODELS):
        city = CITIES[number % len(CITIES)]
        name = f"{CUSTOMERS[number % len(CUSTOMERS)]}/{city}-{number:04d}.tar.gz"
        s3.put_object(Bucket=BUCKET, Key=f"models/{name}", Body=archives[city])
        names.append(name)
    random.Random(1).shuffle(names)
    return names


async def call(url: str, names: list[str], over: threading.Event) -> None:
    chosen = random.Random(2)
    weights = [1 / (rank + 1) ** SKEW for rank in range(len(names))]
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession() as session:
        while not over.is_set():
            body = "a,house" if chosen.random() < WRONG else HOUSE
            task = asyncio.create_task(ask(session, url, chosen.choices(names, weights)[0], body))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            rate = PER_SECOND * (1 + 0.4 * math.sin(time.monotonic() / WAVE_SECS))
            await asyncio.sleep(chosen.expovariate(rate))
        await asyncio.gather(*tasks)


async def ask(session: aiohttp.ClientSession, url: str, name: str, body: str) -> None:
    headers = {"X-Amzn-SageMaker-Target-Model": name, "Content-Type": "text/csv"}
    # Whatever goes wrong is in the picture, or there is none.
    with contextlib.suppress(aiohttp.ClientError):
        async with session.post(f"{url}/invocations", data=body, headers=headers) as answer:
            await answer.read()


def take(url: str, to: Path) -> None:
    size = {"width": 1360, "height": 982}
    with browsers.browser() as browser, browsers.page(browser, url, viewport=size, device_scale_factor=1.5) as page:
        page.locator("#rows tr").first.wait_for()
        page.get_by_role("button", name="Last used").click()
        page.get_by_role("button", name="Pin harbor-homes/denver-1364.tar.gz").click()
        page.mouse.move(0, 0)
        page.locator(".toast").wait_for(state="detached")
        page.wait_for_timeout(2500)
        page.screenshot(path=str(to))


if __name__ == "__main__":
    main()
