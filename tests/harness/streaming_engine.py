"""An engine that streams four tokens, 5 ms apart, 20 ms after each request: as it is told, whoever asks.

Its /metrics go by vLLM's names. PORT [LATE]: seconds that a request waits before it is counted.
"""

import asyncio
import json
import sys
import time
from collections import Counter

FIRST_S, GAP_S, TOKENS = 0.02, 0.005, 4
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LATE_S = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
told = Counter({"num_preemptions_total": 2.0, "prefix_cache_queries_total": 0.0, "prefix_cache_hits_total": 0.0})


def chunk(document):
    text = f"data: {document if isinstance(document, str) else json.dumps(document)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


def count(histogram, seconds):
    told[f"{histogram}_sum"] += seconds
    told[f"{histogram}_count"] += 1


async def stream(writer):
    await asyncio.sleep(LATE_S)
    arrived = time.monotonic()
    told["num_requests_running"] += 1
    await asyncio.sleep(FIRST_S)
    count("time_to_first_token_seconds", time.monotonic() - arrived)
    writer.write(HEAD)
    for token in range(TOKENS):
        await asyncio.sleep(GAP_S if token else 0)
        writer.write(chunk({"choices": [{"text": " word", "finish_reason": None}]}))
    count("e2e_request_latency_seconds", time.monotonic() - arrived)
    told["num_requests_running"] -= 1
    told["prefix_cache_queries_total"] += 16
    told["prefix_cache_hits_total"] += 4
    usage = {"prompt_tokens": 5, "completion_tokens": TOKENS}
    writer.write(chunk({"choices": [], "usage": usage}) + chunk("[DONE]") + b"0\r\n\r\n")


async def serve(reader, writer):
    while head := await reader.readuntil(b"\r\n\r\n"):
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        if b"stream" in body and json.loads(body).get("stream"):
            await stream(writer)
        else:
            metrics = "".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in told.items())
            answer = metrics.encode() if b"/metrics" in head else b'{"choices": [{"text": "x"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        await writer.drain()


async def answer(reader, writer):
    try:
        await serve(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
