"""In-memory S3 server for throughput tests and fault injection: latency, HTTP errors, resets, truncated bodies.

Signatures are not checked. ``python -m tests.object_server`` prints its port and serves until its standard input
is closed; tests use `ObjectServer`. Fault patterns are regular expressions, searched in ``bucket/key`` for GETs of
objects, in ``bucket?`` for listings and in ``bucket!`` for HEADs of buckets. The first fault that matches and is
neither used up for this key nor over applies.
"""

import asyncio
import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.request
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from aiohttp import web

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """A fault injected into GET requests and listings.

    Attributes:
        pattern: regular expression for ``bucket/key``, ``bucket?`` or ``bucket!``.
        kind: ``none``, ``slow_down`` (503), ``error`` (500), ``denied`` (403), ``expired`` (credentials),
            ``moved`` (to another region), ``reset`` (before the response), ``cut`` (half of the body, then reset),
            ``short`` (half of the body, with a Content-Length that fits), ``drip`` (1 KiB every 50 ms), ``hang``.
        times: number of requests per key that fail; None fails all.
        latency_s: delay before the response.
        for_s: seconds from `ObjectServer.fault` on after which the fault is over; None never ends it.
    """

    pattern: str
    kind: str = "none"
    times: int | None = None
    latency_s: float = 0.0
    for_s: float | None = None


class ObjectServer:
    """The server in a subprocess, as a context manager."""

    def __init__(self, certificate: Path | None = None, authority: Path | None = None) -> None:
        """Serve HTTP, or with ``certificate`` (a PEM file with its key), which ``authority`` has signed, TLS."""
        self._arguments = [] if certificate is None else [str(certificate)]
        self._context = None if certificate is None else ssl.create_default_context(cafile=authority)

    def __enter__(self) -> "ObjectServer":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.object_server", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        scheme = "http" if self._context is None else "https"
        self.endpoint_url = f"{scheme}://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def fault(self, *faults: Fault) -> None:
        """Replace all faults and reset the request counts."""
        self._ask("faults", [asdict(fault) for fault in faults])

    def asked(self, method: str = "GET") -> Counter[str]:
        """Return the request count of each ``bucket/key`` since the last `fault`; listings count as ``bucket``."""
        return Counter(self._ask("asked", None)[method])

    def most_at_once(self) -> int:
        """Return the maximum number of concurrent object GETs since the last `fault`."""
        return int(self._ask("most", None))

    def serve_folder(self, bucket: str, folder: Path) -> None:
        """Serve the files of a local folder as a bucket; files are read at each request."""
        self._ask("folder", [bucket, str(folder)])

    def fill(self, bucket: str, prefix: str, count: int) -> None:
        """Create ``count`` objects that are not images, 10,000 below each of ``prefix00000/``, and so on."""
        self._ask("fill", [bucket, prefix, count])

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Create an object, and its bucket if needed."""
        request = urllib.request.Request(f"{self.endpoint_url}/{bucket}/{quote(key)}", data, method="PUT")
        request.add_header("X-Make-Bucket", "yes")
        urllib.request.urlopen(request, context=self._context).close()

    def _ask(self, what: str, value: Any) -> Any:
        body = json.dumps(value).encode()
        with urllib.request.urlopen(f"{self.endpoint_url}/-/{what}", body, context=self._context) as answer:
            return json.loads(answer.read())


class _Server:
    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, bytes | Path]] = {}
        self.rules: list[Fault] = []
        self.used: Counter[tuple[int, str]] = Counter()
        self.log: dict[str, Counter[str]] = {}
        self.sorted: dict[str, list[str]] = {}
        self.in_flight = self.in_flight_at_reset = self.most = 0
        self.since = time.monotonic()

    async def admin(self, request: web.Request) -> web.Response:
        what, value = request.match_info["what"], await request.json()
        if what in {"fill", "folder"}:
            self.sorted.pop(value[0], None)
        if what == "faults":
            # Hanging requests of earlier tests are still in flight and must not count.
            self.rules, self.most, self.since = [Fault(**rule) for rule in value], 0, time.monotonic()
            self.in_flight_at_reset = self.in_flight
            self.used.clear()
            self.log.clear()
        elif what == "fill":
            name, prefix, count = value
            keys = (f"{prefix}{i // 10_000:05d}/{i % 10_000:04d}.png" for i in range(count))
            self.buckets.setdefault(name, {}).update(dict.fromkeys(keys, b"no image"))
        elif what == "folder":
            folder = Path(value[1])
            self.buckets[value[0]] = {
                path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
            }
        answers = {"asked": {m: self.log.get(m, {}) for m in ("GET", "HEAD", "PUT")}, "most": self.most}
        return web.json_response(answers.get(what))

    async def bucket(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["bucket"]
        self._note(request.method, name)
        if request.method == "PUT":
            self.buckets.setdefault(name, {})
            return web.Response()
        if name not in self.buckets:
            return _error(404, "NoSuchBucket")
        if request.method == "POST":
            self.sorted.pop(name, None)
            for key in re.findall("<Key>(.*?)</Key>", await request.text()):
                self.buckets[name].pop(key, None)
            return web.Response(text="<DeleteResult></DeleteResult>", content_type="application/xml")
        if request.method == "HEAD":
            # Only these: botocore follows a redirect of a HEAD without end.
            fault = self._fault(f"{name}!")
            return _REFUSALS[fault.kind]() if fault.kind in {"slow_down", "error"} else web.Response()
        fault = self._fault(f"{name}?")
        await asyncio.sleep(fault.latency_s)
        return _REFUSALS[fault.kind]() if fault.kind in _REFUSALS else self._listed(name, request.query)

    def _listed(self, name: str, query: Any) -> web.Response:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most, entries, last = int(query.get("max-keys", 1000)), [], ""
        folders: list[str] = []
        encode = quote if query.get("encoding-type") == "url" else escape
        if name not in self.sorted:
            self.sorted[name] = sorted(self.buckets[name])
        keys = self.sorted[name]
        at = bisect_left(keys, prefix) if after < prefix else bisect_right(keys, after)
        while at < len(keys) and keys[at].startswith(prefix):
            key = keys[at]
            if len(entries) + len(folders) == most:
                break
            place = key.find(delimiter, len(prefix)) if delimiter else -1
            if place >= 0:
                folders.append(key[: place + len(delimiter)])
                last = folders[-1] + "\U0010ffff"
                at = bisect_right(keys, last)
                continue
            last, at = key, at + 1
            data = self._data(name, key)
            assert data is not None
            entries.append(
                f"<Contents><Key>{encode(key)}</Key><Size>{len(data)}</Size><ETag>&quot;{_etag(data)}&quot;</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            )
        else:
            last = ""
        rest = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if last else ""
        body = "".join(entries) + "".join(
            f"<CommonPrefixes><Prefix>{encode(folder)}</Prefix></CommonPrefixes>" for folder in folders
        )
        return web.Response(
            text=f"<ListBucketResult><Name>{name}</Name><Prefix>{encode(prefix)}</Prefix>"
            f"{'<EncodingType>url</EncodingType>' if encode is quote else ''}"
            f"<KeyCount>{len(entries) + len(folders)}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{str(bool(rest)).lower()}</IsTruncated>{rest}{body}</ListBucketResult>",
            content_type="application/xml",
        )

    def _data(self, bucket: str, key: str) -> bytes | None:
        data = self.buckets.get(bucket, {}).get(key)
        return data.read_bytes() if isinstance(data, Path) else data

    async def object(self, request: web.Request) -> web.StreamResponse:
        bucket, key = request.match_info["bucket"], request.match_info["key"]
        self._note(request.method, f"{bucket}/{key}")
        if request.method == "PUT":
            if bucket not in self.buckets and "X-Make-Bucket" not in request.headers:
                return _error(404, "NoSuchBucket")
            there = self.buckets.setdefault(bucket, {})
            if request.headers.get("If-None-Match") == "*" and key in there:
                return _error(412, "PreconditionFailed")
            wanted, data = request.headers.get("If-Match"), self._data(bucket, key)
            if wanted is not None and (data is None or wanted.strip('"') != _etag(data)):
                return _error(412, "PreconditionFailed")
            self.sorted.pop(bucket, None)
            there[key] = _unchunked(request, await request.read())
            return web.Response(headers={"ETag": f'"{_etag(there[key])}"'})
        if request.method == "DELETE":
            self.sorted.pop(bucket, None)
            self.buckets.get(bucket, {}).pop(key, None)
            return web.Response(status=204)
        if request.method == "HEAD":
            return self._whole(bucket, key, request)[0]
        self.in_flight += 1
        self.most = max(self.most, self.in_flight - self.in_flight_at_reset)
        try:
            return await self._get(bucket, key, request)
        finally:
            self.in_flight -= 1

    async def _get(self, bucket: str, key: str, request: web.Request) -> web.StreamResponse:
        fault = self._fault(f"{bucket}/{key}")
        await asyncio.sleep(fault.latency_s)
        answer, body = self._whole(bucket, key, request)
        if answer.status >= 300 or fault.kind == "none":
            if answer.status < 300:
                answer.body = body
            return answer
        if fault.kind in _REFUSALS:
            return _REFUSALS[fault.kind]()
        match fault.kind:
            case "hang":
                await asyncio.sleep(3600)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
                return answer
        sent = body if fault.kind == "drip" else body[: len(body) // 2]
        headers = {**answer.headers, "Content-Length": str(len(sent) if fault.kind == "short" else len(body))}
        stream = web.StreamResponse(status=answer.status, headers=headers)
        await stream.prepare(request)
        for start in range(0, len(sent), 1024):
            await stream.write(sent[start : start + 1024])
            await asyncio.sleep(0.05 if fault.kind == "drip" else 0)
        if fault.kind == "cut":
            await asyncio.sleep(0.02)
            assert request.transport is not None
            request.transport.abort()
        return stream

    def _whole(self, bucket: str, key: str, request: web.Request) -> tuple[web.Response, bytes]:
        data = self._data(bucket, key)
        if data is None:
            return _error(404, "NoSuchKey" if bucket in self.buckets else "NoSuchBucket"), b""
        etag, status, total = f'"{_etag(data)}"', 200, len(data)
        if request.headers.get("If-Match", etag).strip('"') != etag.strip('"'):
            return _error(412, "PreconditionFailed"), b""
        headers = {"ETag": etag, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "")):
            first, last = wanted.groups()
            start = int(first) if first else max(0, total - int(last))
            stop = min(total, int(last) + 1) if first and last else total
            if start >= total:
                return _error(416, "InvalidRange"), b""
            status, data = 206, data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        headers["Content-Length"] = str(len(data))
        return web.Response(status=status, headers=headers), data

    def _fault(self, name: str) -> Fault:
        for number, rule in enumerate(self.rules):
            if rule.for_s is not None and time.monotonic() - self.since > rule.for_s:
                continue
            if re.search(rule.pattern, name) and (rule.times is None or self.used[number, name] < rule.times):
                self.used[number, name] += 1
                return rule
        return Fault("")

    def _note(self, method: str, name: str) -> None:
        self.log.setdefault(method, Counter())[name] += 1


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _error(status: int, code: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


_REFUSALS = {
    "slow_down": partial(_error, 503, "SlowDown"),
    "error": partial(_error, 500, "InternalError"),
    "denied": partial(_error, 403, "AccessDenied"),
    "expired": partial(_error, 400, "ExpiredToken"),
    "moved": partial(_error, 301, "PermanentRedirect"),
}


def _unchunked(request: web.Request, body: bytes) -> bytes:
    """Decode the aws-chunked content encoding, in which newer clients send signed uploads."""
    if "aws-chunked" not in request.headers.get("Content-Encoding", ""):
        return body
    whole = b""
    while True:
        head, _, body = body.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if size == 0:
            return whole
        whole, body = whole + body[:size], body[size + 2 :]


async def _serve() -> None:
    server = _Server()
    app = web.Application(client_max_size=2**30)
    app.router.add_post("/-/{what}", server.admin)
    for path in ("/{bucket}", "/{bucket}/"):
        app.router.add_route("*", path, server.bucket)
    app.router.add_route("*", "/{bucket}/{key:.+}", server.object)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = None
    if len(sys.argv) > 1:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(sys.argv[1])
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024, ssl_context=context)
    await site.start()
    assert site._server is not None
    sys.stdout.write(f"{site._server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    # A normal shutdown would wait for requests with the fault "hang".
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_serve())
