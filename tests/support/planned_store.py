"""A server that gives the answers a test plans, and the part of Keystone that a store uses."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kit.base import Secret
from kit.store import Ec2Key, RetryPolicy
from kit.store.swift import SwiftStore

BODY = b"0123456789" * 100
GOOD = {"x-amz-meta-sha256": hashlib.sha256(BODY).hexdigest(), "ETag": '"abc"'}
GOOD |= {"x-object-meta-sha256": GOOD["x-amz-meta-sha256"]}
GOOD |= {"last-modified": "Mon, 23 Nov 2026 22:23:29 GMT"}
RETRY = RetryPolicy(timeout_s=5, attempts=4)


class PlannedServer:
    """Answers with the rows of `plan`, the last one for ever; keeps the requests in `seen`.

    A row is (status, headers, body, bytes of the body that are really sent). A question for the
    project's buckets is answered with `buckets` and not kept.
    """

    def __init__(self):
        self.plan, self.seen, self.buckets = [], [], ["abc"]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def any(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                row = outer.bucket_list(self.path) if self.command == "GET" else None
                if row is None:
                    outer.seen.append((self.command, self.headers, body))
                    row = outer.plan.pop(0) if len(outer.plan) > 1 else outer.plan[0]
                status, headers, body, sent = (*row, None)[:4]
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[:sent])
                self.close_connection = sent is not None

            do_GET = do_PUT = do_HEAD = do_DELETE = any

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def bucket_list(self, path):
        """Return the answer to a listing of buckets, by S3 or Swift; None for another request."""
        path, _, query = path.partition("?")
        if path == "/":
            rows = "".join(f"<Bucket><Name>{name}</Name></Bucket>" for name in self.buckets)
            text = f"<ListAllMyBucketsResult><Buckets>{rows}</Buckets></ListAllMyBucketsResult>"
            return 200, {}, text.encode()
        if path == "/swift/v1/AUTH_a":
            rows = [] if "marker=" in query else [{"name": name} for name in self.buckets]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        return None

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class FakeLogin:
    """The part of Keystone that a store uses, and its session; counts renewals."""

    def __init__(self, url):
        self.url, self.renewed, self.session = url, 0, self

    def token(self):
        return Secret(self.get_token())

    def get_token(self):
        return f"token-{self.renewed}"

    def invalidate(self):
        self.renewed += 1
        return True

    def get_endpoint(self, **_):
        return self.storage_url("")

    def storage_url(self, region):
        return self.url + "/swift/v1/AUTH_a"

    def ec2_key(self):
        return Ec2Key("access", Secret("s3cret"))


def code(word):
    return f"<Error><Code>{word}</Code></Error>".encode()


def no_objects(store):
    """Return an empty listing of a bucket as the store's protocol has it."""
    return b"[]" if isinstance(store, SwiftStore) else b"<ListBucketResult/>"
