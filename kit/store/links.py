"""The connections under python-swiftclient's functions: urllib3's, shared by all threads.

swiftclient's own, by `requests`, costs 0.7 ms of processor time a call where this takes 0.3 ms
(swiftclient 4.11), which is what limits many small objects from one process.
"""

from types import SimpleNamespace
from typing import Any
from urllib.parse import ParseResult, urlparse

import urllib3

from kit.store.errors import Patience

BLOCK = 1 << 18  # bytes sent at a time
HEADERS = (  # of an answer, that somebody looks at; swiftclient takes its time over each
    *("content-length", "content-type", "last-modified", "x-object-meta-sha256", "etag"),
    *("retry-after", "x-trans-id"),
)


class Links:
    """The connections to one server; `ca_file` "": the system's CAs."""

    def __init__(self, url: str, ca_file: str, patience: Patience) -> None:
        self._where = urlparse(url)
        times = urllib3.Timeout(min(10.0, patience.timeout_s), patience.timeout_s)
        manager = urllib3.PoolManager(
            ca_certs=ca_file or None, timeout=times, maxsize=32, retries=False, blocksize=BLOCK
        )
        self._pool = manager.connection_from_url(url)

    def one(self) -> "tuple[ParseResult, Exchange]":
        """Give the `http_conn` of one call of swiftclient's functions."""
        return self._where, Exchange(self._pool)


class Exchange:
    """One request and its answer, as swiftclient.client.HTTPConnection would make them."""

    def __init__(self, pool: urllib3.HTTPConnectionPool) -> None:
        self._pool = pool
        self._answer: Any = None

    def request(self, method: str, path: str, data: Any = None, headers: Any = None) -> None:
        """Send a request; the body of the answer is left to be read."""
        self._answer = self._pool.urlopen(
            method,
            path,
            body=data or None,
            headers=headers,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )

    def putrequest(self, path: str, data: Any = None, headers: Any = None) -> None:
        """Send a PUT with an open file as its body."""
        self.request("PUT", path, data, headers)

    def getresponse(self) -> Any:
        """Give the answer with the names that swiftclient expects."""
        answer = self._answer
        answer.request = SimpleNamespace(url=answer.url)
        answer.status_code, answer.content = answer.status, b""
        found = [(name, answer.headers.get(name)) for name in HEADERS]
        answer.getheaders = lambda: [(name, value) for name, value in found if value is not None]
        answer.getheader = answer.headers.get
        return answer

    def close(self) -> None:
        """End the exchange; a connection with unread bytes is not used again."""
        if self._answer is not None:
            self._answer.close()
