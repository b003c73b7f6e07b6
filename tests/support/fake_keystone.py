"""A Keystone that gives tokens of a chosen life, for what the real one would take hours for."""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeKeystone:
    """`url` to log in at; each login gets a new token that lives `life_s`; `status` refuses."""

    def __init__(self, life_s=3600, status=201):
        self.life_s, self.status, self.logins = life_s, status, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v3/auth/tokens"
                outer.logins += 1
                end = datetime.now(UTC) + timedelta(seconds=outer.life_s)
                stamp = end.strftime("%Y-%m-%dT%H:%M:%S.000000Z")
                body = json.dumps({"token": {"methods": ["password"], "expires_at": stamp}})
                self.send_response(outer.status)
                self.send_header("X-Subject-Token", f"token-{outer.logins}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v3"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
