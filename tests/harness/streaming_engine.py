"""An engine that streams four tokens, 5 ms apart, 20 ms after each request: as it is told, whoever asks."""

import asyncio
import json
import sys

FIRST_S, GAP_S, TOKENS = 0.02, 0.005, 4
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(document):
    text = f"data: {document if isinstance(document, str) else json.dumps(document)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


async def serve(reader, writer):
    while head := await reader.readuntil(b"\r\n\r\n"):
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        if b"stream" in body and json.loads(body).get("stream"):
            await asyncio.sleep(FIRST_S)
            writer.write(HEAD)
            for token in range(TOKENS):
                await asyncio.sleep(GAP_S if token else 0)
                writer.write(chunk({"choices": [{"text": " word", "finish_reason": None}]}))
            usage = {"prompt_tokens": 5, "completion_tokens": TOKENS}
            writer.write(chunk({"choices": [], "usage": usage}) + chunk("[DONE]") + b"0\r\n\r\n")
        else:
            answer = json.dumps({"choices": [{"text": "x"}], "status": "ok"}).encode()
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
