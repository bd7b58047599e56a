"""A proxy between an operator and an API server. It counts requests, and makes faults.

Items of a list of built-in kinds lose their kind: a real API server gives none.
"""

import asyncio
import json
import threading
import time
from collections import Counter

import aiohttp
from aiohttp import web

from cluster_tests.cluster import CONFIG, free_port, wait_for

WRITES = ("DELETE", "PATCH", "POST", "PUT")
BUILT_IN = ("/api/", "/apis/apps/", "/apis/autoscaling/", "/apis/policy/")


class Proxy:
    """Passes requests on to an API server, except for the faults that a test asks for."""

    def __init__(self, target, folder):
        self.target = target
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests = []
        self.refusals = []
        self.lines_to_cut = 0
        self.cuts_cleanly = False
        self.is_silent = False
        self.token = None
        self.gone = []
        self.after_write = lambda count: None
        self.config = folder / "proxied-config"
        self.config.write_text(CONFIG.format(url=self.url))
        self._watches = []
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._is_up.wait(10)

    def refuse(self, method, part, status, reason, message, times=10**9):
        """Answers requests whose path has a part by an error, a number of times."""
        self.refusals.append([method, part, status, reason, message, times])

    def drop_watches(self):
        """Breaks the connections of all watches."""
        for transport in self._watches:
            self._loop.call_soon_threadsafe(transport.abort)

    def count(self, since=0):
        """Returns the number of requests by kind: watches, other reads, and writes."""
        counts = Counter({"watches": 0, "reads": 0, "writes": 0})
        for method, _, is_watch in self.requests[since:]:
            counts["watches" if is_watch else "writes" if method in WRITES else "reads"] += 1
        return dict(counts)

    def wait_until_quiet(self, seconds=4.0):
        """Waits until no request came for a while: nothing loops."""
        last = [0, time.monotonic()]

        def is_quiet():
            if len(self.requests) != last[0]:
                last[:] = len(self.requests), time.monotonic()
            return time.monotonic() - last[1] > seconds

        wait_for(is_quiet, f"no request for {seconds} s", 120)

    def stop(self):
        self.drop_watches()
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    async def _run(self):
        self._end = asyncio.Event()
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as self._session:
            self._is_up.set()
            await self._end.wait()
            await runner.cleanup()
        await asyncio.sleep(0.1)  # The transports close.

    async def _answer(self, request):
        is_watch = "watch" in request.query
        self.requests.append((request.method, request.path, is_watch))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response(error_status(401, "Unauthorized", "no"), status=401)
        for refusal in self.refusals:
            method, part, status, reason, message, times = refusal
            if method == request.method and part in request.path_qs and times:
                refusal[-1] -= 1
                return web.json_response(error_status(status, reason, message), status=status)
        if is_watch and self.gone:
            return self._answer_gone(self.gone.pop())
        headers = {**request.headers, "Accept-Encoding": "identity"}
        for name in ("Host", "Content-Length", "Transfer-Encoding"):
            headers.pop(name, None)
        data = await request.read() or None
        try:
            async with self._session.request(
                request.method, self.target + request.path_qs, headers=headers, data=data
            ) as upstream:
                response = web.StreamResponse(status=upstream.status)
                response.content_type = upstream.content_type
                if is_watch:
                    return await self._pass_watch(request, response, upstream)
                body = await upstream.read()
        except aiohttp.ClientError:  # Of either side.
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if request.method in WRITES:
            self.after_write(self.count()["writes"])
        elif request.path.startswith(BUILT_IN) and upstream.content_type == "application/json":
            body = _without_kinds(body)
        await response.prepare(request)
        await response.write(body)
        return response

    async def _pass_watch(self, request, response, upstream):
        await response.prepare(request)
        transport = request.transport
        self._watches.append(transport)
        async for line in upstream.content:
            if self.is_silent:
                continue
            if self.lines_to_cut and b'"BOOKMARK"' not in line:
                self.lines_to_cut -= 1
                await response.write(line[: len(line) // 2])
                if not self.cuts_cleanly:
                    transport.abort()
                break
            await response.write(line)
        return response

    def _answer_gone(self, form):
        status = error_status(410, "Expired", "too old resource version: 1 (2)")
        if form == "status":
            return web.json_response(status, status=410)
        return web.Response(text=json.dumps({"type": "ERROR", "object": status}) + "\n")


def _without_kinds(body):
    """Returns an answer without the kinds of the items, if it is a list."""
    answer = json.loads(body)
    for item in answer.get("items", ()):
        item.pop("kind", None)
        item.pop("apiVersion", None)
    return json.dumps(answer).encode()


def error_status(status, reason, message):
    """Returns the answer of an API server that refuses a request."""
    kinds = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**kinds, "code": status, "reason": reason, "message": message}
