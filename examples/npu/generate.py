"""Generates text with an export of `dlxc compile MODEL --target qnn`, on the CPU or on a Qualcomm NPU.

    generate.py EXPORT "What is the capital of France?"
    generate.py EXPORT --provider qnn --soc 57 --arch 75 "What is 27 + 45?"
    generate.py EXPORT --eval questions.jsonl --against expected.jsonl

This is all that a host does: the graphs compute; the host looks up embeddings, makes angles and masks, keeps the cache, and
decides which tokens to reveal, as the manifest's `decode` says. Decoding is greedy. What a manifest asks for and this file does
not do is refused by name.

On the CPU the graphs run unoptimized: optimized sessions of newer versions of ONNX Runtime multiply quantized weights by 8-bit
activations, which is not what the files say. On QNN nothing may fall back to the CPU.

A question of --eval has `prompt`, `answer` and, if wanted, `system`; a line of --against has the expected `text`. With --json
every answer is a line that another run can be compared --against, and the last line sums up.
"""

import argparse
import functools
import json
import os
import pathlib
import sys

import jinja2.ext
import jinja2.sandbox
import numpy as np
import onnxruntime as ort
import tokenizers

DTYPES = {"f16": np.float16, "f32": np.float32}


class Graphs:
    """The entries of an export, with the cache that they read and the host writes."""

    def __init__(self, directory, provider, soc, arch):
        self.directory, self.provider, self.device = directory, provider, {"soc_model": soc, "htp_arch": arch}
        self.manifest = json.loads((directory / "manifest.json").read_text())
        if self.manifest["version"] != 1:
            sys.exit(f"error: manifest.json has version {self.manifest['version']}; this example reads version 1")
        self.model = self.manifest["model"]
        of_kind = lambda kind: sorted((e for e in self.manifest["entries"] if e["kind"] == kind), key=lambda e: e["rows"])
        self.steps, self.heads = of_kind("step"), of_kind("head")
        self.largest = self.steps[-1]["rows"]
        table = self.manifest["embeddings"]
        self.table = np.memmap(directory / table["file"], DTYPES[table["dtype"]], "r").reshape(table["rows"], table["cols"])
        ports = [p for p in self.steps[0]["inputs"] if p["role"] in ("k_cache", "v_cache")]
        self.caches = {p["name"]: np.zeros(p["shape"], DTYPES[p["dtype"]]) for p in ports}
        rule, _, length = self.model["mask"].partition(":")
        # A row sees its own block and those before: of one row each, or of all.
        blocks = {"full": self.model["max_seq"], "causal": 1, "block_causal": int(length or 1)}
        if rule not in blocks:
            sys.exit(f"error: model.mask is {rule!r}; this example has {', '.join(blocks)}")
        self.block = blocks[rule]

    @functools.cache
    def session(self, name):
        """The session of an entry: compiled when it is first needed."""
        options = ort.SessionOptions()
        path = str(self.directory / next(e["file"] for e in self.manifest["entries"] if e["name"] == name))
        if self.provider == "cpu":
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        devices, backend = qnn()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_provider_for_devices(devices, {"backend_path": backend, **self.device})
        return ort.InferenceSession(path, options)

    def forward(self, ids, at, visible, store):
        """Last hidden states of tokens that stand at cache row `at` and after it.

        They see each other and the cache rows before `visible`, as far as the model's mask lets them; what the cache holds of
        their own rows gives way to what they are now. Their keys and values go to the cache only if `store`.
        """
        count = len(ids)
        entry = next(e for e in self.steps if e["rows"] >= count)
        # Rows that only fill the step are copies of the first: a row that sees nothing has no softmax.
        place = np.where(np.arange(entry["rows"]) < count, np.arange(entry["rows"]), 0)
        rows = (at + place)[:, None]
        cached, new = np.arange(self.model["max_seq"])[None], np.arange(entry["rows"])[None]
        sees = lambda row: row // self.block <= rows // self.block
        others = (cached < visible) & ((cached < at) | (cached >= at + count))
        seen = np.concatenate([sees(cached) & others, sees(at + new) & (new < count)], axis=1)
        half = self.model["head_dim"] // 2
        angles = rows * float(self.model["rope_theta"]) ** (-np.arange(half) / half)
        made = {
            "embeddings": lambda port: self.table[np.asarray(ids)[place]],
            "rope_cos": lambda port: np.tile(np.cos(angles), 2),
            "rope_sin": lambda port: np.concatenate([-np.sin(angles), np.sin(angles)], axis=1),
            "mask": lambda port: np.where(seen, 0, port["masked_value"]),
            "k_cache": lambda port: self.caches[port["name"]],
            "v_cache": lambda port: self.caches[port["name"]],
        }
        feed = {p["name"]: made[p["role"]](p).astype(DTYPES[p["dtype"]], copy=False) for p in entry["inputs"]}
        for port, value in zip(entry["outputs"], self.session(entry["name"]).run(None, feed)):
            if port["role"] == "hidden":
                hidden = value[:count]
            elif store:
                first = (slice(None),) * port["axis"]
                self.caches[port["into"]][(*first, slice(at, at + count))] = value[(*first, slice(count))]
        return hidden

    def logits(self, hidden):
        """Logits of rows of hidden states, as many at a time as a head takes."""
        made = []
        while len(hidden):
            head = next((h for h in self.heads if h["rows"] >= len(hidden)), self.heads[-1])
            piece, hidden = hidden[: head["rows"]], hidden[head["rows"] :]
            filled = np.concatenate([piece, np.repeat(piece[:1], head["rows"] - len(piece), axis=0)])
            (out,) = self.session(head["name"]).run(None, {head["inputs"][0]["name"]: filled})
            made.append(out[: len(piece)])
        return np.concatenate(made).astype(np.float32)


@functools.cache
def qnn():
    """The device that QNN runs on, and its library. On x86-64 both are an emulation."""
    import onnxruntime_qnn

    # The library writes to standard output, where answers go.
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
    devices = [d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider"]
    return devices[:1], onnxruntime_qnn.get_qnn_htp_path()


# Fields of a decode policy that are read, or that say nothing to a greedy decode.
READ = ("block", "sub_block", "mask_id", "hidden_id", "steps", "schedule", "reveal", "suppress_ids", "stop_ids", "stop_strings")
MEANINGLESS = ("filter_order", "seed")
# What the other fields may say.
ALLOWED = {
    "attention": ("full", "block-causal", "causal"),
    "grid": ("absolute", "prompt-end"),
    "logit_shift": (0, 1),
    "first_row": ("own",),
    # The first token of a block is the most likely one, drawn or not.
    "lead": ("none", "most-likely", "chosen"),
    "cache": ("none", "commit-block", "commit-between"),
    "prompt_tail": ("in-block",),
    "confidence": ("probability",),
    # Without a temperature and filters all stages are the same.
    "confidence_stage": ("before-temperature", "before-filters", "after-filters"),
    "cfg_scale": (0,),
    "unsure_ids": ([],),
    "temperature": (0,),
    "top_k": (0,),
    "top_p": (1,),
    "stop_at": ("block", "settled"),
}


def even(tokens, steps):
    """Splits tokens over steps; the first steps get the remainder."""
    return [tokens // steps + (step < tokens % steps) for step in range(steps)]


def linear(tokens, steps):
    """What a linear noise schedule reveals, without steps that reveal nothing. Its times are f32, its products f64."""
    counts, one = [], np.float32(1)
    for step in range(steps, 0, -1):
        s, t = np.float32((step - 1) / steps), np.float32(step / steps)
        stays = float((one - (one - s)) / (one - (one - t)))
        count = min(round(tokens * (1 - stays)), tokens)
        counts += [count] if count else []
        tokens -= count
    return counts


def threshold(at, sure, order, quota, threshold):
    above = np.flatnonzero(sure > np.float32(threshold))
    return above if len(above) >= quota else order[:quota]


# How many positions each step of a block is due; behind the last one it is all of them.
SCHEDULES = {
    "even": ({}, lambda masked, block, steps: even(masked, steps)),
    "even-block": ({}, lambda masked, block, steps: even(block, steps)),
    "linear": ({}, lambda masked, block, steps: linear(masked, steps)),
}
# Which of the masked positions `at` a step reveals, given how sure the model is of each and their order by that.
REVEALS = {
    "sequential": ({}, lambda at, sure, order, quota: np.flatnonzero(at - at[0] < quota)),
    "static": ({}, lambda at, sure, order, quota: order[:quota]),
    "threshold": ({"threshold": 0.9}, threshold),
}


def named(field, key, given, known):
    """The function that a policy names, with its parameters."""
    if given[key] not in known:
        sys.exit(f"error: decode.{field}.{key} is {given[key]!r}; this example has {', '.join(known)}")
    defaults, function = known[given[key]]
    for parameter in given.keys() - {key, *defaults}:
        sys.exit(f"error: decode.{field} has {parameter!r}, which this example does not know")
    return functools.partial(function, **{**defaults, **{k: given[k] for k in defaults.keys() & given.keys()}})


class Generator:
    """Decodes with the policy of an export."""

    def __init__(self, graphs):
        self.graphs, self.policy = graphs, {"hidden_id": None, "sub_block": None, **graphs.manifest["decode"]}
        for field, value in self.policy.items():
            if field in ALLOWED and value not in ALLOWED[field]:
                sys.exit(f"error: decode.{field} is {value!r}; this example has {', '.join(map(repr, ALLOWED[field]))}")
        self.sub_block = self.policy["sub_block"] or {"length": self.policy["block"], "cached": False}
        unknown = [*(self.policy.keys() - {*ALLOWED, *READ, *MEANINGLESS}), *(self.sub_block.keys() - {"length", "cached"})]
        if unknown:
            sys.exit(f"error: decode has {', '.join(map(repr, unknown))}, which this example does not know")
        self.schedule = named("schedule", "curve", self.policy["schedule"], SCHEDULES)
        self.reveal = named("reveal", "rule", self.policy["reveal"], REVEALS)
        read = lambda name: (graphs.directory / graphs.manifest[name]).read_text()
        self.tokenizer, self.text = tokenizers.Tokenizer.from_str(read("tokenizer")), json.loads(read("text"))

    def encode(self, prompt, system=None):
        """Token ids of a question, as the chat template puts it. Special tokens in it count as such."""
        if not self.text.get("chat_template"):
            return self.tokenizer.encode(prompt, add_special_tokens=self.text.get("add_bos_token") is not False).ids
        settings = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [jinja2.ext.loopcontrols]}
        template = jinja2.sandbox.ImmutableSandboxedEnvironment(**settings).from_string(self.text["chat_template"])
        messages = [{"role": role, "content": said} for role, said in (("system", system), ("user", prompt)) if said]
        text = template.render(**self.text["special_tokens"], messages=messages, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def generate(self, prompt, max_new):
        """The new tokens after the prompt's, and the number of passes by kind."""
        policy, graphs = self.policy, self.graphs
        block, mask, full = policy["block"], policy["mask_id"], policy["attention"] == "full"
        self.passes = {"prefill": 0, "denoise": 0, "commit": 0}
        room = graphs.model["max_seq"] if full else graphs.model["max_seq"] // block * block
        room = room if policy["cache"] != "none" else min(room, graphs.largest)
        if not prompt or len(prompt) >= room or mask in prompt:
            sys.exit(f"error: a prompt has 1 to {room - 1} tokens, none of them the mask; this one has {len(prompt)}")
        end = min(len(prompt) + max_new, room)
        # Whole blocks are decoded, unless the one token that is wanted of the last is decided by the block before.
        if not full and not (policy["lead"] != "none" and end % block == 1 and end > max(len(prompt), 1)):
            end = -(-end // block) * block
        self.ids, self.prompt, self.hidden = np.array(prompt + [mask] * (end - len(prompt))), len(prompt), 0
        origin = len(prompt) % block if policy["grid"] == "prompt-end" else 0
        first = len(prompt) - (len(prompt) - origin) % block
        if policy["cache"] != "none":
            # Full attention tells blocks apart only by what is in the cache: each is a pass of its own.
            chunk = block if full else max(graphs.largest // block * block, block)
            cuts = [0, *range(origin or chunk, first, chunk), first] if first else []
            for start, stop in zip(cuts, cuts[1:]):
                self.fill("prefill", start, stop, leads=stop == first)
        for start in range(first, end, block):
            stop = min(start + block, end)
            said_stop = lambda: self.before_stop(self.ids[len(prompt) : stop])[1]
            if self.denoise(start, stop) or self.stops(start, stop) is not None or said_stop():
                break
            # Nobody reads what the last block would leave.
            if policy["cache"] != "none" and stop < end:
                self.fill("commit", start, stop, leads=True)
        made = self.ids[len(prompt) : len(prompt) + max_new]
        ends = np.flatnonzero((made == mask) | np.isin(made, policy["stop_ids"]))
        return made[: ends[0]] if len(ends) else made

    def fill(self, kind, start, stop, leads):
        """Puts positions into the cache for good. The last of them may decide the position after them."""
        fed = [i for i in self.ids[start:stop] if i != self.policy["hidden_id"]]
        at, self.hidden = start - self.hidden, self.hidden + stop - start - len(fed)
        if not fed:
            return
        hidden = self.graphs.forward(fed, at, at + len(fed), store=True)
        self.passes[kind] += 1
        if leads and self.policy["lead"] != "none" and stop < len(self.ids) and self.ids[stop] == self.policy["mask_id"]:
            self.ids[stop] = self.choose(hidden[-1:])[0][0]

    def denoise(self, start, stop):
        """Decides a block. True when a stop token has ended the text before that."""
        policy, ids = self.policy, self.ids
        masked = lambda a, b: a + np.flatnonzero(ids[a:b] == policy["mask_id"])
        due = self.schedule(len(masked(start, stop)), stop - start, policy["steps"])
        cached, length, taken, filled = self.sub_block["cached"], self.sub_block["length"], 0, False
        for part in range(start, stop, length):
            part_end = min(part + length, stop)
            while len(at := masked(part, part_end)):
                found = self.stops(start, stop)
                if policy["stop_at"] == "settled" and found is not None and not len(masked(start, found)):
                    return True
                if policy["cache"] == "none":
                    first, last, visible = 0, len(ids), len(ids)
                elif cached and filled and ids[part] != policy["mask_id"]:
                    first, last, visible = part, part_end, stop
                else:
                    first, last, visible = start, stop, stop
                # What this leaves in the cache is for later passes over the same block; the commit overwrites it.
                hidden = self.graphs.forward(ids[first:last], first - self.hidden, visible - self.hidden, cached)
                self.passes["denoise"] += 1
                tokens, sure = self.choose(hidden[np.maximum(at - first - policy["logit_shift"], 0)])
                quota = due[taken] if taken < len(due) else len(at)
                revealed = self.reveal(at, sure, np.argsort(-sure, kind="stable"), quota)
                ids[at[revealed]] = tokens[revealed]
                taken, filled = taken + 1, True
        return False

    def choose(self, hidden):
        """The most likely token of every row, and how sure the model is of it."""
        logits = self.graphs.logits(hidden)
        logits[:, self.policy["suppress_ids"]] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = weights / weights.sum(axis=1, keepdims=True)
        if self.policy["mask_id"] >= 0:
            logits[:, self.policy["mask_id"]] = -np.inf
        tokens = logits.argmax(axis=1)
        return tokens, np.take_along_axis(shares, tokens[:, None], axis=1)[:, 0]

    def stops(self, start, stop):
        """The first new stop token of some positions."""
        start = max(start, self.prompt)
        found = np.flatnonzero(np.isin(self.ids[start:stop], self.policy["stop_ids"]))
        return start + found[0] if len(found) else None

    def before_stop(self, ids):
        """The text of tokens, and whether one of the policy's strings ends it."""
        text = self.tokenizer.decode(ids)
        ends = [text.find(s) for s in self.policy["stop_strings"] if s in text]
        return text[: min(ends, default=None)], bool(ends)

    def answer(self, prompt, max_new, system=None):
        """The text that answers a prompt, and what it cost."""
        ids = self.generate(self.encode(prompt, system), max_new)
        return {"text": self.before_stop(ids)[0], "tokens": len(ids), **self.passes}


def evaluate(generator, args, max_new):
    read = lambda path: [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    questions = read(args.eval)[: args.limit]
    texts = [line["text"] for line in read(args.against) if "text" in line] if args.against else [None] * len(questions)
    if len(texts) < len(questions):
        sys.exit(f"error: {args.against} has {len(texts)} texts for {len(questions)} questions")
    right, same = 0, 0
    for question, wanted in zip(questions, texts):
        answer = generator.answer(question["prompt"], max_new, question.get("system"))
        right += answer["text"] == question["answer"]
        same += answer["text"] == wanted
        if args.json:
            print(json.dumps({"prompt": question["prompt"], **answer}), flush=True)
        elif wanted not in (None, answer["text"]):
            print(f"{question['prompt']}\n  expected {wanted!r}\n  got      {answer['text']!r}", flush=True)
    total = {"asked": len(questions), "exact_match": right / len(questions)}
    total.update({"same_text": same / len(questions)} if args.against else {})
    print(json.dumps(total) if args.json else "  ".join(f"{k} {v}" for k, v in total.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=pathlib.Path, help="directory that dlxc wrote")
    parser.add_argument("prompt", nargs="?", help="what to say; standard input if not given")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--max-new", type=int, help="most new tokens [64 with full attention, else 256]")
    parser.add_argument("--provider", choices=("cpu", "qnn"), default="cpu")
    parser.add_argument("--soc", default="57", help="SoC model that QNN compiles for")
    parser.add_argument("--arch", default="75", help="HTP generation that QNN compiles for")
    parser.add_argument("--eval", type=pathlib.Path, metavar="FILE.jsonl", help="questions to answer")
    parser.add_argument("--against", type=pathlib.Path, metavar="FILE.jsonl", help="texts to compare the answers with")
    parser.add_argument("--limit", type=int, help="answer the first questions only")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    args = parser.parse_args()
    generator = Generator(Graphs(args.export, args.provider, args.soc, args.arch))
    max_new = args.max_new or (64 if generator.policy["attention"] == "full" else 256)
    if args.eval:
        return evaluate(generator, args, max_new)
    answer = generator.answer(args.prompt or sys.stdin.read().strip(), max_new, args.system)
    print(json.dumps(answer) if args.json else answer["text"])


if __name__ == "__main__":
    main()
