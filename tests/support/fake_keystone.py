"""A Keystone with tokens that live as long as a test wants, and EC2 keys; it counts both."""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeKeystone:
    """`url` to log in at; each login gets a new token that lives `life_s`; `status` refuses."""

    PROJECT = "p1"

    def __init__(self, life_s=3600, status=201):
        self.life_s, self.status, self.logins, self.ec2_keys = life_s, status, 0, []
        self.identities, self.ec2_status = [], 201  # how each login was; what a new key gets
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/credentials/OS-EC2"):
                    number = len(outer.ec2_keys) + 1
                    row = {"access": f"access-{number}", "secret": "s3cret", "tenant_id": "p1"}
                    outer.ec2_keys.append(row)
                    self.answer(outer.ec2_status, {"credential": row})
                    return
                assert self.path == "/v3/auth/tokens"
                outer.logins += 1
                outer.identities.append(body["auth"]["identity"])
                end = datetime.now(UTC) + timedelta(seconds=outer.life_s)
                stamp = end.strftime("%Y-%m-%dT%H:%M:%S.000000Z")
                token = {"methods": ["password"], "expires_at": stamp}
                token |= {"user": {"id": "u1"}, "project": {"id": outer.PROJECT}}
                name = {"X-Subject-Token": f"token-{outer.logins}"}
                self.answer(outer.status, {"token": token}, name)

            def do_GET(self):
                assert self.path == "/v3/users/u1/credentials/OS-EC2"
                self.answer(200, {"credentials": outer.ec2_keys})

            def answer(self, status, content, headers=()):
                body = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v3"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
