"""The manifests in deploy/kubernetes: manifests.py DLXC WORK (see manifests.sh).

Kubernetes' own kinds are validated strictly by kubernetes-validate (a field that is not in the schema is an error), KServe's by
the types of its Python package, HTTPRoute by the schema of @kubernetes-models/gateway-api; for InferencePool no registry has a
schema. Beyond schemas, every container's arguments start a real server: its probes, names and metrics must be those that
the manifests speak of, and its grace period must cover preStop and --drain.
"""

import importlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import types
import urllib.error
import urllib.request

import kubernetes.client
import kubernetes_validate
import yaml

DLXC, WORK = sys.argv[1], pathlib.Path(sys.argv[2])
MANIFESTS = pathlib.Path(__file__).parent.parent.parent / "deploy/kubernetes"
DOCUMENTS = [(path.name, document) for path in sorted(MANIFESTS.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())]


def kserve():
    """KServe's models, without what its package imports besides them."""
    [site] = [p for p in sys.path if (pathlib.Path(p) / "kserve/models").is_dir()]
    for name in ("kserve", "kserve.models"):
        module = types.ModuleType(name)
        module.__path__ = [str(pathlib.Path(site) / name.replace(".", "/"))]
        sys.modules[name] = module
    found = {}
    for path in (pathlib.Path(site) / "kserve/models").glob("v1*.py"):
        found |= {k: v for k, v in vars(importlib.import_module(f"kserve.models.{path.stem}")).items() if hasattr(v, "openapi_types")}
    return found


def typed(value, kind, place, models):
    """Fails where a value has fields that its type does not, or is of another type."""
    if inner := re.fullmatch(r"[lL]ist\[(.*)\]", kind):
        assert isinstance(value, list), f"{place} must be a list"
        [typed(v, inner[1], f"{place}[{i}]", models) for i, v in enumerate(value)]
    elif inner := re.fullmatch(r"[dD]ict[(\[]str, (.*)[)\]]", kind):
        assert isinstance(value, dict), f"{place} must be an object"
        [typed(v, inner[1], f"{place}.{k}", models) for k, v in value.items()]
    elif kind in ("str", "int", "bool", "float"):
        assert type(value).__name__ == kind, f"{place} must be of type {kind}"
    elif kind in ("object", "ResourceQuantity", "IntstrIntOrString", "datetime") or "Quantity" in kind or "IntOrString" in kind:
        pass
    else:
        model = models.get(kind) or getattr(kubernetes.client, re.sub(r"^K8sIoApi(Apps|Core|Autoscaling)(V\d)", r"\2", kind), None)
        assert model, f"{place}: the type {kind} is not known"
        fields = {model.attribute_map[name]: of for name, of in model.openapi_types.items()}
        for name, v in value.items():
            assert name in fields, f"{place} has no field {name}; it has {sorted(fields)}"
            typed(v, fields[name], f"{place}.{name}", models)


def route(document):
    script = ("import { HTTPRoute } from '@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1';"
              "new HTTPRoute(JSON.parse(process.argv[1])).validate();")
    return subprocess.run(["node", "--input-type=module", "-e", script, json.dumps(document)], cwd=WORK, capture_output=True, text=True)


def schemas():
    models = kserve()
    for name, document in DOCUMENTS:
        group, kind = document["apiVersion"].split("/")[0], document["kind"]
        if group == "serving.kserve.io":
            of = document["apiVersion"].split("/")[1].capitalize() + kind
            typed(document, of, kind, models)
            how = "types of kserve 0.21.0"
        elif kind == "HTTPRoute":
            done = route(document)
            assert done.returncode == 0, done.stderr
            broken = json.loads(json.dumps(document))
            broken["spec"]["rules"][0]["matches"][0]["path"]["type"] = "Begin"
            assert route(broken).returncode != 0, "a wrong route is not found"
            how = "schema of @kubernetes-models/gateway-api 2.0.0"
        elif kind == "InferencePool":
            how = "not validated: no registry has its schema"
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)
            broken = json.loads(json.dumps(document))
            broken["metadata"]["nmae"] = "x"
            try:
                kubernetes_validate.validate(broken, "1.37", strict=True)
                raise AssertionError("a misspelt field is not found")
            except kubernetes_validate.ValidationError:
                how = "kubernetes-validate, strict, 1.37"
        print(f"{name}: {kind}: {how}")
    wrong = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "spec": {"predictor": {"modle": {}}}}
    try:
        typed(wrong, "V1beta1InferenceService", "InferenceService", models)
    except AssertionError:
        return
    raise AssertionError("a misspelt field is not found")


def get(url, host="127.0.0.1"):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"host": host}), timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def containers():
    for name, document in DOCUMENTS:
        if document["kind"] == "Deployment":
            pod = document["spec"]["template"]["spec"]
            yield name, pod["containers"][0], pod["terminationGracePeriodSeconds"]
        elif document["kind"] == "ServingRuntime":
            [service] = [d for _, d in DOCUMENTS if d["kind"] == "InferenceService"]
            yield name, document["spec"]["containers"][0], service["spec"]["predictor"]["terminationGracePeriodSeconds"]


def server(name, container, grace):
    args = [str(WORK / "sdar.dlxa") if a.endswith(".dlxa") else a for a in container["args"]]
    args = [{"--port=8080": "--port=0", "--host=0.0.0.0": "--host=127.0.0.1"}.get(a, a) for a in args]
    process = subprocess.Popen([DLXC, *args], stdout=subprocess.PIPE, stderr=open(WORK / "log", "w"), text=True)
    try:
        url = json.loads(process.stdout.readline())["address"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path, status = container[probe]["httpGet"]["path"], 503
            while status == 503:
                status, _ = get(url + path)
            assert status == 200, f"{name}: {probe} {path}: {status}"
        for host in [a.split("=", 1)[1] for a in args if a.startswith("--allow-host=")]:
            assert get(url + "/v1/models", f"{host}:8080")[0] == 200, f"{name}: {host} is refused"
        assert get(url + "/v1/models", "elsewhere.example.com")[0] == 403
        hosts = {r["host"] for _, d in DOCUMENTS if d["kind"] == "Ingress" for r in d["spec"]["rules"]}
        if name == "server.yaml":
            assert all(get(url + "/v1/models", host)[0] == 200 for host in hosts), "the ingress's name is refused"
        exported = set(re.findall(r"^(dlxc_\w+)\{", get(url + "/metrics")[1], re.M))
        drain = [seconds(a.split("=")[1]) for a in args if a.startswith("--drain=")][0]
        stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        # The server gives the last bytes of cut streams two seconds.
        assert grace >= stop + drain + 2, f"{name}: a grace period of {grace} s is shorter than {stop} + {drain} + 2"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    print(f"{name}: a server with these arguments answers the probes and names, and drains within the grace period")
    return exported


schemas()
exported = set.union(*[server(*each) for each in containers()])
said = {name for path in [*MANIFESTS.glob("*.yaml")] for name in re.findall(r"\bdlxc_\w+", path.read_text())}
assert said <= exported, f"no such metric: {said - exported}"
print(f"metrics of the manifests that a server exports: {', '.join(sorted(said))}")
