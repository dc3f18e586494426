"""Runs the clients' scripts beside a server and prints a table of what they did: clients.py DLXC WORK (see clients.sh).

Serves two models over the same weights: `tiny`, whose chat template knows no tools, and `tools`, whose template does. On
request of a script (control() in cases.py) it fills the queue or restarts the server, so that 429 and 503 happen when they
should: the way is cleared only after the client was refused once. Fails if any case does, if a script does not run to its
end, or if the log holds what a client wrote.
"""

import http.client
import http.server
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

DLXC, WORK = sys.argv[1], pathlib.Path(sys.argv[2])
HERE = pathlib.Path(__file__).parent
SCRIPTS = [[sys.executable, HERE / "client.py"], ["node", WORK / "client.mjs"],
           [sys.executable, HERE / "frameworks.py"], ["node", WORK / "frameworks.mjs"]]
ENDLESS = {"model": "tiny", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 16000, "stream": True,
           "ignore_eos": True, "seed": 1, "temperature": 1}


class Server:
    """A server that can be started again at the same port."""

    def __init__(self):
        self.port, self.log = 0, open(WORK / "log", "a+")
        self.log.truncate(0)
        self.start()

    def start(self):
        command = [DLXC, "serve", WORK / "tiny.dlxa", WORK / "tools.dlxa", "--port", str(self.port), "--sequences", "1",
                   "--waiting", "2", "--api-key-file", WORK / "keys", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.url = json.loads(self.process.stdout.readline())["address"]
        self.port = int(self.url.rsplit(":", 1)[1])
        wait(lambda: self.get("/health/ready") is not None, "the server is ready")

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path):
        """A body, or nothing where the status is no success."""
        connection = self.connection()
        connection.request("GET", path, headers={"authorization": "Bearer secret"})
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return body if response.status == 200 else None

    def stream(self):
        """An endless answer: the connection, and what came back."""
        connection = self.connection()
        headers = {"authorization": "Bearer secret", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(ENDLESS), headers)
        return connection, connection.getresponse()

    def busy(self):
        lines = (self.get("/metrics") or "").splitlines()
        names = ("dlxc_requests_running{", "dlxc_requests_waiting{")
        return sum(int(line.split()[-1]) for line in lines if line.startswith(names))

    def refused(self, status):
        """How many requests were answered with that status."""
        return (WORK / "log").read_text().count(f'"status":{status}')


def wait(condition, what, seconds=30):
    for _ in range(seconds * 100):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError(f"waited {seconds} s until {what}")


def later(work):
    threading.Thread(target=work, daemon=True).start()


def idle(server):
    wait(lambda: server.busy() == 0, "nothing runs", 10)


def busy(server):
    idle(server)
    held = [server.stream() for _ in range(3)]
    seen = server.refused(429)

    def free():
        wait(lambda: server.refused(429) > seen, "a client was refused with 429")
        [response.close() or connection.close() for connection, response in held]

    later(free)


def restart(server):
    idle(server)
    connection, response = server.stream()
    seen = server.refused(503)
    server.process.send_signal(signal.SIGTERM)
    wait(lambda: server.get("/health/ready") is None, "the server is not ready any more")
    seen = server.refused(503)

    def again():
        wait(lambda: server.refused(503) > seen, "a client was refused with 503")
        response.close()
        connection.close()
        assert server.process.wait(30) == 0
        server.start()

    later(again)


class Control(http.server.BaseHTTPRequestHandler):
    """What scripts ask for."""

    def do_GET(self):
        try:
            {"/idle": idle, "/busy": busy, "/restart": restart}[self.path](SERVER)
            self.send_response(200)
        except Exception as e:
            self.send_response(500, str(e))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    control = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Control)
    later(control.serve_forever)
    bad, table = [], {}
    for script in SCRIPTS:
        command = [*map(str, script), SERVER.url, f"http://127.0.0.1:{control.server_port}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600)
        for line in done.stdout.splitlines():
            client, case, said = line.split("\t")
            table.setdefault(case, {})[client] = said
        if done.returncode:
            bad.append(f"{script[1].name} ended with {done.returncode}")
    clients = list(dict.fromkeys(client for row in table.values() for client in row))
    print("| case |", " | ".join(clients), "|")
    print("|---" * (len(clients) + 1) + "|")
    for case, row in table.items():
        print("|", " | ".join([case, *(row.get(client, "–") for client in clients)]), "|")
    bad += [f"{client}: {case}" for case, row in table.items() for client, said in row.items() if said == "FAILED"]
    log = (WORK / "log").read_text()
    bad += [f"the log holds {text!r}" for text in ("capital of France", "Bearer", "secret") if text in log]
    SERVER.process.send_signal(signal.SIGTERM)
    if SERVER.process.wait(30) != 0:
        bad.append("the server did not end with status 0 on SIGTERM")
    print("\n".join(bad) or "every case passed, and the server ended with status 0 on SIGTERM")
    sys.exit(1 if bad else 0)


SERVER = Server()
try:
    main()
finally:
    SERVER.process.kill()
