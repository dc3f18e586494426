"""Load and faults against a server that it starts itself: faults.py DLXC ARTIFACT [REQUESTS]. Needs nothing but Python.

Prints a line for each part; ends with status 1 at the first thing that is not as it should be. Linux alone: it reads /proc.
"""

import asyncio
import atexit
import collections
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

dlxc, artifact, total = sys.argv[1], sys.argv[2], int((sys.argv + ["100000"])[3])
name = os.path.basename(artifact).removesuffix(".dlxa")
# What may come on top of what the first quarter of the requests takes.
SMALL = 8 << 20
ADD = "What is 27 + 45?"


class Server:
    """A server on a port of its own, or on that of one that is gone."""

    def __init__(self, port=0):
        begin = time.monotonic()
        self.log = tempfile.TemporaryFile("w+")
        # One thread, which waits for no other on a machine that has much else to do.
        args = [dlxc, "serve", artifact, "--port", str(port), "--threads", "1", "--sequences", "8", "--drain", "10m"]
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=self.log, text=True)
        atexit.register(self.process.kill)
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.log.seek(0)
            sys.exit(f"the server does not start: {self.log.read()}")
        self.host, self.port = "127.0.0.1", int(self.url.rsplit(":", 1)[1])
        while self.status("/health/ready") != 200:
            time.sleep(0.02)
        self.began = time.monotonic() - begin

    def status(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.read()
            return error.code

    def metric(self, metric):
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric + "{"))

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

    def idle(self):
        begin = time.monotonic()
        names = ["dlxc_requests_running", "dlxc_requests_waiting", "dlxc_cache_slots_taken"]
        while any(self.metric(n) for n in names):
            must(time.monotonic() - begin < 60, "the server never comes to rest")
            time.sleep(0.02)
        steps = self.metric("dlxc_steps_total")
        time.sleep(0.3)
        must(steps == self.metric("dlxc_steps_total"), "it goes on computing for nobody")


class Wrong(Exception):
    pass


def must(right, what):
    if not right:
        raise Wrong(what)


def request(path, body, close=False):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    end = "connection: close\r\n" if close else ""
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{end}content-length: {len(data)}\r\n\r\n".encode() + data


def chat(content=ADD, **more):
    return {"model": name, "messages": [{"role": "user", "content": content}]} | more


async def answer(reader):
    """Status and body of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    status = int(head.split(" ")[1])
    if "transfer-encoding: chunked" not in head:
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return status, await reader.readexactly(length)
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return status, body


def asked(number):
    """The request of a number, and the status that it must get."""
    tokens, text = number % 4 + 1, f"What is {number * 7 % 1000} + {number * 13 % 977}?"
    kind = number % 10
    if kind < 4:
        return request("/v1/chat/completions", chat(text, max_tokens=tokens)), 200
    if kind < 6:
        return request("/v1/chat/completions", chat(text, max_tokens=tokens, stream=True, stream_options={"include_canvas": True})), 200
    if kind == 6:
        return request("/v1/completions", {"model": name, "prompt": text * 3, "max_tokens": tokens, "temperature": 1}), 200
    if kind == 7:
        return request("/v1/responses", {"model": name, "input": text, "max_output_tokens": tokens}), 200
    if kind == 8:
        regex = f"[a-z{number % 7}]{{1,{number % 50 + 1}}}"
        return request("/v1/chat/completions", chat(text, max_tokens=tokens, structured_outputs={"regex": regex})), 200
    wrong = [chat(text, max_tokens=0), chat(text, model="none"), b"{", chat(text * 500), {"model": name, "prompt": [[-1]]}]
    path = ["/v1/chat/completions", "/v1/chat/completions", "/v1/responses", "/v1/chat/completions", "/v1/completions"]
    which = number // 10 % 5
    return request(path[which], wrong[which]), 404 if which == 1 else 400


async def many(server):
    """All requests over a few connections; the memory of the server meanwhile."""
    numbers, counts, samples, done = iter(range(total)), collections.Counter(), [], 0

    async def work():
        nonlocal done
        reader, writer = await asyncio.open_connection(server.host, server.port)
        for number in numbers:
            sent, wanted = asked(number)
            writer.write(sent)
            status, body = await answer(reader)
            must(status == wanted, f"request {number} gets {status} instead of {wanted}: {body[:300]}")
            must(b'"error":{' not in body or status != 200, f"request {number} fails: {body[:300]}")
            counts[status] += 1
            done += 1
            # Connections come and go, too.
            if number % 97 == 0:
                writer.close()
                reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.close()

    async def watch():
        while done < total:
            samples.append((done, server.memory()))
            await asyncio.sleep(0.25)

    begin = time.monotonic()
    await asyncio.gather(watch(), *(work() for _ in range(16)))
    seconds = time.monotonic() - begin
    samples.append((done, server.memory()))
    quarter = lambda n: max(memory for at, memory in samples if total * n / 4 <= at <= total * (n + 1) / 4)
    quarters = [quarter(n) for n in range(4)]
    told = ", ".join(f"{memory / (1 << 20):.1f}" for memory in quarters)
    print(f"{total} requests in {seconds:.0f} s, {dict(counts)}; most memory in each quarter of them: {told} MiB", flush=True)
    must(quarters[3] <= quarters[0] + SMALL, "the memory grows")
    server.idle()


async def gone(server, count=2000):
    """Clients that leave in the middle of a block, or before anything has come."""
    rows, refused = server.metric("dlxc_step_rows_total"), 0

    async def leave(number):
        nonlocal refused
        async with room:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(request("/v1/chat/completions", chat(ignore_eos=True, max_tokens=3000, stream=number % 3 > 0)))
            if number % 3 == 2:
                try:
                    await reader.readuntil(b'"content":"')
                except asyncio.IncompleteReadError as answer:
                    # On a slow machine those who have left may still fill the queue.
                    must(b" 429 " in answer.partial, f"a client is told {answer.partial[:200]}")
                    refused += 1
            # Without a word, as a machine that is switched off and comes back.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()

    room = asyncio.Semaphore(48)
    begin = time.monotonic()
    await asyncio.gather(*(leave(number) for number in range(count)))
    server.idle()
    rows = server.metric("dlxc_step_rows_total") - rows
    print(f"{count} clients gone in {time.monotonic() - begin:.1f} s: nothing runs, {rows / count:.0f} rows each, {refused} refused", flush=True)
    must(refused * 10 < count, "too many are refused")
    must(rows < count * 1500, "answers to nobody are computed")


async def slow(server, count=3):
    """Clients that do not read: they are let go, and others are answered meanwhile."""
    # More than the system keeps for a connection.
    body = chat("Tell me a story.", ignore_eos=True, max_tokens=3900, n=2, stream=True, temperature=2)
    body |= {"logprobs": True, "top_logprobs": 20}
    body["stream_options"] = {"include_canvas": True, "include_usage": True, "continuous_usage_stats": True}
    sockets = []
    for _ in range(count):
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.connect((server.host, server.port))
        stream.sendall(request("/v1/chat/completions", body))
        sockets.append(stream)
    worst, begin, memory = 0, time.monotonic(), server.memory()
    while time.monotonic() - begin < 5 or (server.metric("dlxc_requests_running") and time.monotonic() - begin < 300):
        asked_at = time.monotonic()
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(request("/v1/chat/completions", chat(max_tokens=4, priority=-1)))
        status, _ = await answer(reader)
        must(status == 200, f"beside clients that do not read somebody gets {status}")
        worst = max(worst, time.monotonic() - asked_at)
        writer.close()
        await asyncio.sleep(0.05)
    server.idle()
    grown = (server.memory() - memory) / (1 << 20)
    must(worst < 10, f"others wait {worst:.1f} s for those that do not read")
    print(f"{count} clients that do not read, 2 choices each: let go after {time.monotonic() - begin:.1f} s, "
          f"others waited {worst:.2f} s at most, {grown:.1f} MiB more", flush=True)
    must(grown < 64, f"what waits for them takes {grown:.0f} MiB")
    for stream in sockets:
        stream.settimeout(60)
        size, end = 0, b""
        try:
            while piece := stream.recv(1 << 20):
                size, end = size + len(piece), end[-100:] + piece
        except ConnectionError:
            pass
        must(b"[DONE]" not in end, f"an answer of {size} bytes that nobody read is whole: it is too short for this test")


async def under_load(server, then):
    """Streams that have begun when `then` happens; gives what `then` gives, and what each stream came to: text, or None."""
    async def stream():
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(request("/v1/chat/completions", chat("Tell me a story.", ignore_eos=True, max_tokens=400, stream=True), close=True))
        try:
            await reader.readuntil(b'"content":"')
            begun.release()
            body = (await reader.read(-1)).decode()
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        return body if body.endswith("data: [DONE]\n\n\r\n0\r\n\r\n") else None

    begun = asyncio.Semaphore(0)
    streams = [asyncio.ensure_future(stream()) for _ in range(24)]
    for _ in range(8):
        await begun.acquire()
    told = await asyncio.to_thread(then)
    return told, await asyncio.gather(*streams)


def told_to_stop(server):
    server.process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    while (status := server.status("/health/ready")) == 200:
        must(time.monotonic() - begin < 5, "it stays ready")
    must(status == 503, f"told to stop, its readiness is {status}")
    try:
        urllib.request.urlopen(urllib.request.Request(server.url + "/v1/chat/completions", json.dumps(chat()).encode()), timeout=60)
        must(False, "a new request is answered")
    except urllib.error.HTTPError as error:
        must(error.code == 503 and 1 <= int(error.headers["retry-after"]) <= 60, f"a new request gets {error.code}")
    return time.monotonic() - begin


def main():
    server = Server()
    asyncio.run(many(server))
    asyncio.run(gone(server))
    asyncio.run(slow(server))
    refused, streams = asyncio.run(under_load(server, lambda: told_to_stop(server)))
    must(all(streams), f"{streams.count(None)} of {len(streams)} running answers were cut")
    must(server.process.wait(60) == 0, f"it ends with status {server.process.returncode}")
    print(f"SIGTERM beside {len(streams)} answers: refuses after {refused * 1e3:.0f} ms, all of them whole, status 0", flush=True)
    server.log.seek(0)
    must("a panic" not in server.log.read(), "there was a panic: see the log")

    server = Server()
    _, streams = asyncio.run(under_load(server, server.process.kill))
    must(None in streams, "an answer that was cut looks whole")
    server.process.wait()
    again = Server(server.port)
    body = urllib.request.Request(again.url + "/v1/chat/completions", json.dumps(chat()).encode())
    with urllib.request.urlopen(body, timeout=60) as response:
        must(json.load(response)["choices"][0]["message"]["content"] == "72", "another answer")
    print(f"kill -9 beside {len(streams)} answers: {streams.count(None)} cut; ready on the same port after {again.began:.2f} s", flush=True)
    again.process.terminate()
    must(again.process.wait(60) == 0, "it does not end")


try:
    main()
except Wrong as wrong:
    sys.exit(f"failed: {wrong}")
