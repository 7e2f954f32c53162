"""Many concurrent streams of which half vanish at random moments, in every way a client can vanish."""
import asyncio
import json
import os
import random
import socket
import struct

from client import at_rest, complete_raw, events, post
from sqd_process import Sqd

STREAMS = 200
KINDS = 10
SLOW = bool(os.environ.get("SQD_SLOW")) or os.environ.get("SQD_BUILD") in ("asan", "tsan")
TOKENS = 12 if SLOW else 48


def body(kind):
    return {"prompt": f"Story number {kind}: once", "max_tokens": TOKENS, "seed": kind, "temperature": 0.5 * (kind % 4), "stream": True,
            "ignore_eos": kind % 2 == 0, "stop": ["\u2603", "zzzz"]}


def chunks(data):
    """What must not depend on anything else: texts, reasons, and where one chunk ends and the next begins."""
    items = events(data)
    assert items[-1] == "[DONE]"
    return [(c["text"], c["finish_reason"]) for item in items[:-1] for c in item["choices"]]


async def survive(port, kind):
    return chunks(await complete_raw(port, body(kind)))


async def vanish(port, kind, rng):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = post("/v1/completions", {**body(kind), "n": 1 + kind % 3, "max_tokens": TOKENS * (3 if SLOW else 6)})
    how = rng.choice(["bytes", "time", "time", "half request"])
    if how == "half request":
        writer.write(data[:rng.randrange(1, len(data))])
        await asyncio.sleep(rng.random() * 0.2)
    else:
        writer.write(data)
    if how == "bytes":
        seen = b""
        enough = rng.randrange(1, 6000)
        while len(seen) < enough and b"[DONE]" not in seen:
            more = await reader.read(500)
            if not more:
                break
            seen += more
    elif how == "time":
        await asyncio.sleep(rng.random() * 1.5)
    if rng.random() < 0.5:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if rng.random() < 0.7 else writer.close()


async def storm(port, rng):
    jobs = []
    for i in range(STREAMS // 2):
        jobs += [survive(port, i % KINDS), vanish(port, rng.randrange(KINDS), rng)]
    return (await asyncio.gather(*jobs))[0::2]


def test_storm(sqd_binary, int8_model):
    rng = random.Random(int(os.environ.get("SQD_STORM_SEED", "1")))
    with Sqd(sqd_binary, "--model", int8_model, "--listen", "127.0.0.1:0", "--max-sequences", 32, "--max-queue", 1000) as s:
        solo = [asyncio.run(survive(s.port, kind)) for kind in range(KINDS)]
        before = at_rest(s)
        kv = before['sqd_kv_cache_blocks{state="free"}']
        results = asyncio.run(storm(s.port, rng))
        for i, result in enumerate(results):
            assert result == solo[i % KINDS], f"stream {i} differs from its solo run"
        after = at_rest(s)
        assert after['sqd_kv_cache_blocks{state="free"}'] == kv, "every KV block is back"
        done = sum(after[n] - before[n] for n in ('sqd_requests_total{outcome="stop"}', 'sqd_requests_total{outcome="length"}'))
        assert done >= STREAMS // 2
        assert after['sqd_requests_total{outcome="failed"}'] == 0
        print(json.dumps({n: after[n] for n in after if n.startswith(("sqd_requests_total", "sqd_requests_accepted"))}))
