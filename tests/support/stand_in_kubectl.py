"""A stand-in for kubectl on the VM: `port-forward` alone, in its words; no cluster takes part.

It answers every connection with the name of the service, refuses what it does not know, and says
that a service named `missing` is not found, as kubectl 1.30 does.
"""

import http.server
import sys


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(f"Handling connection for {self.server.server_address[1]}", flush=True)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.named.encode())

    def log_message(self, *_):
        pass


def main(words):
    if (
        len(words) != 7
        or words[0] != "port-forward"
        or words[1::2][:2] != ["--namespace", "--address"]
    ):
        sys.exit(f"error: unknown command {words}")
    _, _, namespace, _, address, service, ports = words
    here, _, there = ports.partition(":")
    if service == "svc/missing":
        sys.exit('Error from server (NotFound): services "missing" not found')
    with http.server.ThreadingHTTPServer((address, int(here)), Answer) as server:
        server.named = f"{namespace} {service} {there}"
        print(f"Forwarding from {address}:{here} -> {there}", flush=True)
        server.serve_forever()


main(sys.argv[1:])
