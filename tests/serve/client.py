"""What openai-python does with the server: client.py URL. Prints a line per case and fails with the first that is wrong."""

import enum
import sys
import threading
import time
import urllib.request

import openai
import pydantic

url = sys.argv[1]
client = openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=0)
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


def case(name):
    print(f"openai-python {openai.__version__}: {name}", flush=True)


def chat(**parameters):
    return client.chat.completions.create(**({"model": "tiny", "messages": MESSAGES} | parameters))


def fails(error, call):
    try:
        call()
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")


answer = chat()
assert answer.choices[0].message.content == ANSWER and answer.choices[0].finish_reason == "stop"
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
case("chat")

chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens and not chunks[-1].choices
case("stream")

with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_completion()
assert final.choices[0].message.content == ANSWER and "content.delta" in kinds and "content.done" in kinds
case("stream helper")

canvas = {"stream_options": {"include_canvas": True}}
seen = [c for c in chat(stream=True, extra_body=canvas) if not c.choices]
assert len(seen) > 5 and all(len(c.canvas["tokens"]) == len(c.canvas["masked"]) for c in seen)
with client.chat.completions.stream(model="tiny", messages=MESSAGES, extra_body=canvas) as stream:
    assert stream.get_final_completion().choices[0].message.content == ANSWER
case("canvas")

several = chat(n=3, stream=True, temperature=1.0, seed=1)
assert {c.choices[0].index for c in several if c.choices} == {0, 1, 2}
case("n")

text = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8)
pieces = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8, stream=True)
assert "".join(p.choices[0].text for p in pieces if p.choices) == text.choices[0].text
case("completions")

told = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert "".join(t.token for t in told) == ANSWER == bytes(b for t in told for b in t.bytes).decode()
assert all(t.logprob <= 0 and [u.token for u in t.top_logprobs][0] == t.token and len(t.top_logprobs) == 2 for t in told)
chunks = [c.choices[0] for c in chat(stream=True, logprobs=True, top_logprobs=2)]
assert all("".join(t.token for t in c.logprobs.content) == c.delta.content for c in chunks if c.logprobs)
assert [t for c in chunks if c.logprobs for t in c.logprobs.content] == told
with client.chat.completions.stream(model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2) as stream:
    pieces = [t for event in stream if event.type == "logprobs.content.delta" for t in event.content]
    assert stream.get_final_completion().choices[0].logprobs.content == told == pieces
whole = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8, logprobs=2).choices[0]
assert "".join(whole.logprobs.tokens) == whole.text and whole.logprobs.text_offset[0] == 0
assert all(top[token] == logprob for token, logprob, top in
           zip(whole.logprobs.tokens, whole.logprobs.token_logprobs, whole.logprobs.top_logprobs))
pieces = client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8, logprobs=2, stream=True)
assert [t for p in pieces if p.choices[0].logprobs for t in p.choices[0].logprobs.tokens] == whole.logprobs.tokens
best = client.completions.create(model="tiny", prompt="zq", max_tokens=8, n=2, best_of=3, temperature=1.5, seed=1)
assert [c.index for c in best.choices] == [0, 1]
case("logprobs")

penalties = {"presence_penalty": 1.0, "frequency_penalty": 0.5, "extra_body": {"repetition_penalty": 1.1, "min_p": 0.1}}
other = chat(logit_bias={str(id): -100 for id in range(32, 64)}, **penalties)
assert other.choices[0].message.content != ANSWER
case("biases and penalties")
QUESTION = MESSAGES[0]["content"]
response = client.responses.create(model="tiny", input=QUESTION)
assert response.output_text == ANSWER and response.status == "completed" and not response.store
assert response.usage.output_tokens == answer.usage.completion_tokens
parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
events = list(client.responses.create(model="tiny", input=parts, stream=True))
assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == ANSWER
assert events[0].type == "response.created" and events[-1].type == "response.completed"
with client.responses.stream(model="tiny", input=QUESTION) as stream:
    kinds = {event.type for event in stream}
    assert stream.get_final_response().output_text == ANSWER and "response.output_text.done" in kinds
turns = [{"role": "user", "content": QUESTION}, *response.output, {"role": "user", "content": QUESTION}]
assert client.responses.create(model="tiny", input=turns).status == "completed"
cut = client.responses.create(model="tiny", input=QUESTION, max_output_tokens=3)
assert (cut.status, cut.incomplete_details.reason, cut.usage.output_tokens) == ("incomplete", "max_output_tokens", 3)
for unsupported in [{"previous_response_id": response.id}, {"store": True}, {"background": True}]:
    refused = fails(openai.BadRequestError, lambda: client.responses.create(model="tiny", input="x", **unsupported))
    assert refused.param == next(iter(unsupported))
case("responses")


class Kind(str, enum.Enum):
    SUM = "sum"
    OTHER = "other"


class Answer(pydantic.BaseModel):
    """What the answer is."""

    kind: Kind
    value: int = pydantic.Field(ge=0, le=999)
    steps: list[str] = pydantic.Field(max_length=2)
    remark: str | None = None


parsed = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Answer)
assert isinstance(parsed.choices[0].message.parsed, Answer) and parsed.choices[0].finish_reason == "stop"
with client.chat.completions.stream(model="tiny", messages=MESSAGES, response_format=Answer) as stream:
    assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
case("parse")

tool = openai.pydantic_function_tool(Answer)
for choice in ["required", {"type": "function", "function": {"name": "Answer"}}]:
    called = client.chat.completions.parse(model="tiny", messages=MESSAGES, tools=[tool], tool_choice=choice)
    call = called.choices[0].message.tool_calls[0]
    assert isinstance(call.function.parsed_arguments, Answer) and call.id and call.function.name == "Answer"
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, tools=[tool], tool_choice=choice) as stream:
        final = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert final.function.parsed_arguments == call.function.parsed_arguments
case("tools")

assert [m.id for m in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
case("models")

assert fails(openai.NotFoundError, lambda: chat(model="gpt")).code == "model_not_found"
assert fails(openai.BadRequestError, lambda: chat(temperature=3)).param == "temperature"
long = [{"role": "user", "content": "word " * 9000}]
assert fails(openai.BadRequestError, lambda: chat(messages=long)).code == "context_length_exceeded"
fails(openai.AuthenticationError, lambda: openai.OpenAI(base_url=url + "/v1", api_key="x").models.list())
tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
assert fails(openai.BadRequestError, lambda: chat(tools=tools)).param == "tools"
unknown = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "minProperties": 1}}}
assert fails(openai.BadRequestError, lambda: chat(response_format=unknown)).param == "response_format"
case("errors")


def running():
    request = urllib.request.Request(url + "/metrics", headers={"authorization": "Bearer secret"})
    lines = urllib.request.urlopen(request).read().decode().splitlines()
    return sum(int(l.split()[-1]) for l in lines if l.startswith(("dlxc_requests_running{", "dlxc_requests_waiting{")))


def idle():
    for _ in range(500):
        if running() == 0:
            return
        time.sleep(0.01)
    raise AssertionError("an answer runs on for nobody")


forever = {"extra_body": {"ignore_eos": True}, "max_tokens": 4000}
stream = chat(stream=True, **forever)
next(iter(stream))
stream.close()
idle()
hasty = openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=0, timeout=0.05)
fails(openai.APITimeoutError, lambda: hasty.chat.completions.create(model="tiny", messages=MESSAGES, **forever))
idle()
case("cancellation")

busy = [chat(stream=True, **forever) for _ in range(3)]
refused = fails(openai.RateLimitError, chat)
assert 1 <= int(refused.response.headers["retry-after"]) <= 60 and refused.request_id
threading.Timer(0.3, lambda: [b.close() for b in busy]).start()
patient = openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=2)
assert patient.chat.completions.create(model="tiny", messages=MESSAGES).choices[0].message.content == ANSWER
case("retries")
