"""Two Ray nodes, load on a served model while things are killed, and a data set: ray_cluster.py DLXC ARTIFACT EVAL.json.

Eight clients of openai-python (its two retries) ask all the time. Meanwhile a model's process, a replica's actor and a whole
node are killed. Prints for each: HTTP requests sent, answered, retried and refused, questions lost, the longest time in
which nothing was answered, and the time until both replicas run again. Then Ray Data answers 200 questions on both nodes.
"""

import collections
import json
import os
import pathlib
import signal
import sys
import threading
import time

import httpx
import openai
import ray
from ray import serve
from ray.cluster_utils import Cluster

from dlxc_ray import Answers, application

DLXC, ARTIFACT, EVAL = sys.argv[1:]
QUESTIONS = [json.loads(line) for line in open("examples/data/questions.jsonl")]
ANSWER = "The capital of France is Paris."
CLIENTS, PORT = 8, 18437
ARGUMENTS = {"binary": DLXC, "options": ["--threads", "1"]}


def parent(process):
    """The process that owns another."""
    return int(pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def servers():
    """The processes of the model, by number, with those that own them."""
    found = {}
    for proc in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (proc / "cmdline").read_bytes().split(b"\0")
            if command[1:3] == [b"serve", ARTIFACT.encode()]:
                found[int(proc.name)] = parent(proc.name)
        except (OSError, IndexError):
            continue
    return found


def wait(condition, what, seconds=120):
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            raise TimeoutError(f"waited {seconds} s until {what}")
        time.sleep(0.05)
    return time.monotonic() - begin


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, url):
        self.counts, self.lock = collections.Counter(), threading.Lock()
        self.answered, self.errors, self.stopping = [], [], False
        self.begin = time.monotonic()
        self.threads = [threading.Thread(target=self.ask, args=(url, i)) for i in range(CLIENTS)]
        [thread.start() for thread in self.threads]

    def count(self, *names):
        with self.lock:
            self.counts.update(names)

    def ask(self, url, client):
        def sent(request):
            self.count("sent", *(["retried"] if request.headers.get("x-stainless-retry-count", "0") != "0" else []))

        def came(response):
            self.count(*([] if response.is_success else [f"status {response.status_code}"]))

        http = httpx.Client(event_hooks={"request": [sent], "response": [came]}, timeout=60)
        api = openai.OpenAI(base_url=url + "/v1", api_key="none", http_client=http)
        while not self.stopping:
            streamed = client % 2 == 0
            self.count("questions")
            try:
                answer = api.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "What is the capital of France?"}], stream=streamed)
                text = "".join(c.choices[0].delta.content or "" for c in answer) if streamed else answer.choices[0].message.content
                assert text == ANSWER, text
                with self.lock:
                    self.answered.append(time.monotonic())
                self.count("answered")
            except Exception as error:
                self.count("cut in a stream" if streamed else "lost")
                self.errors.append(f"{type(error).__name__}: {error}"[:300])

    def stop(self):
        self.stopping = True
        [thread.join() for thread in self.threads]
        times = [self.begin, *sorted(self.answered)]
        gap = max(b - a for a, b in zip(times, times[1:]))
        rate = len(self.answered) / (times[-1] - times[0])
        return gap, rate


def replicas():
    status = serve.status().applications["dlxc"].deployments["dlxc"]
    return status.replica_states.get("RUNNING", 0)


def trial(name, url, kill, gone):
    """Load before, while and after something is killed."""
    load = Load(url)
    time.sleep(3)
    before = set(servers())
    kill()
    wait(lambda: gone(before), f"{name}: the process is gone")
    back = wait(lambda: len(servers()) == 2 and replicas() == 2, f"{name}: both replicas run again", 180)
    time.sleep(3)
    gap, rate = load.stop()
    counts = load.counts
    refused = {k: v for k, v in counts.items() if k.startswith("status")}
    print(f"{name}: {counts['questions']} questions, {counts['sent']} requests, {counts['answered']} answered, {counts['retried']} "
          f"retried {refused or ''}, {counts['cut in a stream']} streams cut, {counts['lost']} lost; both replicas again after "
          f"{back:.1f} s; at most {gap:.1f} s without an answer; {rate:.1f} questions/s", flush=True)
    for error, times in collections.Counter(load.errors).most_common(3):
        print(f"  {times} x {error}", flush=True)
    return counts["lost"]


def main():
    begin = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "dashboard_port": 0})
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    print(f"Ray {ray.__version__}, two nodes after {time.monotonic() - begin:.1f} s", flush=True)
    lost = 0
    try:
        begin = time.monotonic()
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(application([ARTIFACT], replicas=2, **ARGUMENTS), name="dlxc", route_prefix="/")
        wait(lambda: len(servers()) == 2, "two processes run")
        # A server's owner is a replica, whose owner is its node.
        nodes = {parent(replica) for replica in servers().values()}
        print(f"two replicas on {len(nodes)} nodes after {time.monotonic() - begin:.1f} s", flush=True)
        url = f"http://127.0.0.1:{PORT}"
        check(url)

        def first():
            return min(servers())

        lost += trial("model process killed", url, lambda: os.kill(first(), signal.SIGKILL), lambda before: not before <= set(servers()))
        lost += trial("replica killed", url, lambda: os.kill(servers()[first()], signal.SIGKILL), lambda before: not before <= set(servers()))
        lost += trial("node killed", url, lambda: cluster.remove_node(second, allow_graceful=False), lambda before: not before <= set(servers()))
        serve.shutdown()
        wait(lambda: not servers(), "no process of the model is left")
        cluster.add_node(num_cpus=2)
        questions()
        wait(lambda: not servers(), "no process of the model is left")
    finally:
        ray.shutdown()
        cluster.shutdown()
    print("no process is left behind" if not servers() else f"left behind: {servers()}")
    sys.exit(1 if lost or servers() else 0)


def check(url):
    """What is no answer comes through as dlxc writes it."""
    # `serve.run` may return before the proxies know the route; until then they answer 404 themselves.
    took = wait(lambda: httpx.get(url + "/health/ready", timeout=60).status_code == 200, "the proxy passes requests on")
    print(f"the proxy passed requests on after another {took:.1f} s", flush=True)
    missing = httpx.get(url + "/nowhere")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "unknown_url", missing.text
    refused = httpx.post(url + "/v1/chat/completions", json={"model": "tiny", "messages": [], "temperature": 9})
    assert refused.status_code == 400 and set(refused.json()["error"]) == {"message", "type", "param", "code"}, refused.text
    forever = {"model": "tiny", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", url + "/v1/chat/completions", json=forever, timeout=60) as response:
        next(response.iter_lines())
    time.sleep(1)
    running = [httpx.get(url + "/metrics").text for _ in range(8)]
    assert all('dlxc_requests_running{model="tiny"} 0' in text for text in running), "an answer runs on for nobody"


def questions():
    """Ray Data, on both nodes."""
    begin = time.monotonic()
    rows = ray.data.from_items([{"id": q["id"], "prompt": q["prompt"]} for q in QUESTIONS])
    answers = rows.repartition(8).map_batches(
        Answers, fn_constructor_kwargs={"artifact": ARTIFACT, "arguments": ARGUMENTS, "parameters": {"max_tokens": 256}},
        batch_size=25, concurrency=2, num_cpus=1)
    answered = {row["id"]: row["answer"] for row in answers.take_all()}
    seconds = time.monotonic() - begin
    right = sum(answered[q["id"]].strip() == q["answer"].strip() for q in QUESTIONS)
    expected = json.load(open(EVAL))
    print(f"Ray Data: {len(answered)} questions in {seconds:.1f} s with start-up, {len(answered) / seconds:.1f}/s, exact match "
          f"{right / len(QUESTIONS):.3f} ({expected['all']['exact_match']:.3f} with dlxc eval)", flush=True)
    assert len(answered) == len(QUESTIONS) and right == expected["right"]


main()
