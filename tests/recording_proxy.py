"""An HTTP proxy that records requests, also those through TLS tunnels, and answers them itself as S3 would.

With it, tests see where clients send requests: no name needs to exist. All buckets have the object ``set/k.png``;
the bucket ``elsewhere`` is in eu-west-1, and requests that are signed for other regions are redirected there.
"""

import re
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.certificates import Authority

DATA = b"not an image"
ETAG = '"0123"'
_LISTING = (
    "<ListBucketResult><Name>b</Name><Prefix></Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>"
    "<IsTruncated>false</IsTruncated><Contents><Key>set/k.png</Key><Size>12</Size><ETag>&quot;0123&quot;</ETag>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
)


@dataclass(frozen=True)
class Sent:
    """A request: its method, its URL without the query, the region it is signed for, and who pays."""

    method: str
    url: str
    region: str | None
    payer: str | None


class RecordingProxy:
    """The proxy, in a thread, as a context manager; ``sent`` are the requests, except HEADs of buckets."""

    def __init__(self, authority: Authority) -> None:
        self.authority, self.sent = authority, list[Sent]()

    def __enter__(self) -> "RecordingProxy":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tunnel = ""

    def do_CONNECT(self) -> None:
        self.tunnel = f"https://{self.path.removesuffix(':443')}"
        host = self.path.rpartition(":")[0]
        self.send_response(200)
        self.end_headers()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._proxy.authority.certificate(host))
        try:
            self.connection = context.wrap_socket(self.connection, server_side=True)
        except (OSError, ssl.SSLError):
            self.close_connection = True
            return
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    @property
    def _proxy(self) -> RecordingProxy:
        proxy: RecordingProxy = self.server.proxy  # type: ignore[attr-defined]
        return proxy

    def _answer(self) -> None:
        url, _, query = f"{self.tunnel}{self.path}".partition("?")
        signed = re.search(r"Credential=[^/]+/\d+/([^/]+)/", self.headers.get("Authorization", ""))
        region = signed[1] if signed else None
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        is_bucket = not url.rstrip("/").endswith("k.png")
        if "elsewhere" in url and region != "eu-west-1":
            self._send(301, b"<Error><Code>PermanentRedirect</Code></Error>", {"x-amz-bucket-region": "eu-west-1"})
            return
        if not (is_bucket and self.command == "HEAD"):
            self._proxy.sent.append(Sent(self.command, url, region, self.headers.get("x-amz-request-payer")))
        if is_bucket and self.command == "GET" and "list-type" in query:
            self._send(200, _LISTING.encode(), {"Content-Type": "application/xml"})
        else:
            self._send(200, b"" if is_bucket or self.command == "PUT" else DATA, {"ETag": ETAG})

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
