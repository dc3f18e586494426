"""What openai-python does with the server: client.py URL CONTROL. A line per case (see clients.py)."""

import asyncio
import sys

import openai

from cases import ANSWER, ENDLESS, KEY, MESSAGES, QUESTION, URL, Answer, control, fails, run

client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
patient = client.with_options(max_retries=2)


def chat(by=client, **parameters):
    return by.chat.completions.create(**({"model": "tiny", "messages": MESSAGES} | parameters))


def whole():
    answer = chat()
    assert answer.choices[0].message.content == ANSWER and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def stream():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens == chat().usage.completion_tokens and not chunks[-1].choices
    with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER and "content.delta" in kinds and "content.done" in kinds


def canvas():
    canvas = {"stream_options": {"include_canvas": True}}
    seen = [c for c in chat(stream=True, extra_body=canvas) if not c.choices]
    # A client that reads slowly is not sent all of them.
    assert seen and all(len(c.canvas["tokens"]) == len(c.canvas["masked"]) for c in seen)
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, extra_body=canvas) as stream:
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def choices():
    several = chat(n=3, stream=True, temperature=1.0, seed=1)
    assert {c.choices[0].index for c in several if c.choices} == {0, 1, 2}


def complete(**parameters):
    # The model would end this text at once.
    return client.completions.create(model="tiny", prompt="Once upon a time", max_tokens=8, extra_body={"min_tokens": 8}, **parameters)


def completions():
    text = complete().choices[0].text
    assert text and "".join(p.choices[0].text for p in complete(stream=True) if p.choices) == text


def logprobs():
    told = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(t.token for t in told) == ANSWER == bytes(b for t in told for b in t.bytes).decode()
    assert all(t.logprob <= 0 and [u.token for u in t.top_logprobs][0] == t.token and len(t.top_logprobs) == 2 for t in told)
    chunks = [c.choices[0] for c in chat(stream=True, logprobs=True, top_logprobs=2)]
    assert all("".join(t.token for t in c.logprobs.content) == c.delta.content for c in chunks if c.logprobs)
    assert [t for c in chunks if c.logprobs for t in c.logprobs.content] == told
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2) as stream:
        pieces = [t for event in stream if event.type == "logprobs.content.delta" for t in event.content]
        assert stream.get_final_completion().choices[0].logprobs.content == told == pieces
    whole = complete(logprobs=2).choices[0]
    assert "".join(whole.logprobs.tokens) == whole.text and whole.logprobs.text_offset[0] == 0
    assert all(top[token] == logprob for token, logprob, top in
               zip(whole.logprobs.tokens, whole.logprobs.token_logprobs, whole.logprobs.top_logprobs))
    pieces = complete(logprobs=2, stream=True)
    assert [t for p in pieces if p.choices[0].logprobs for t in p.choices[0].logprobs.tokens] == whole.logprobs.tokens
    best = client.completions.create(model="tiny", prompt="zq", max_tokens=8, n=2, best_of=3, temperature=1.5, seed=1)
    assert [c.index for c in best.choices] == [0, 1]


def penalties():
    penalties = {"presence_penalty": 1.0, "frequency_penalty": 0.5, "extra_body": {"repetition_penalty": 1.1, "min_p": 0.1}}
    other = chat(logit_bias={str(id): -100 for id in range(32, 64)}, **penalties)
    assert other.choices[0].message.content != ANSWER


def responses():
    response = client.responses.create(model="tiny", input=QUESTION)
    assert response.output_text == ANSWER and response.status == "completed" and not response.store
    assert response.usage.output_tokens == chat().usage.completion_tokens
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
    assert isinstance(client.responses.parse(model="tiny", input=QUESTION, text_format=Answer).output_parsed, Answer)


def structured():
    parsed = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Answer)
    assert isinstance(parsed.choices[0].message.parsed, Answer) and parsed.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, response_format=Answer) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


TOOL = openai.pydantic_function_tool(Answer)


def forced():
    for choice in ["required", {"type": "function", "function": {"name": "Answer"}}]:
        asked = {"model": "tiny", "messages": MESSAGES, "tools": [TOOL], "tool_choice": choice}
        call = client.chat.completions.parse(**asked).choices[0].message.tool_calls[0]
        assert isinstance(call.function.parsed_arguments, Answer) and call.id and call.function.name == "Answer"
        with client.chat.completions.stream(**asked) as stream:
            final = stream.get_final_completion().choices[0].message.tool_calls[0]
        assert final.function.parsed_arguments == call.function.parsed_arguments


def auto():
    answer = chat(model="tools", tools=[TOOL], max_tokens=60)
    with client.chat.completions.stream(model="tools", messages=MESSAGES, tools=[TOOL], max_tokens=60) as stream:
        [event for event in stream]
        assert stream.current_completion_snapshot.choices[0].message.content == answer.choices[0].message.content
    called = chat(model="tools", tools=[TOOL], tool_choice="required").choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "72"}
    after = chat(model="tools", messages=[*MESSAGES, called, result], tools=[TOOL], max_tokens=60)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert fails(openai.BadRequestError, lambda: chat(tools=[TOOL])).param == "tools"


def errors():
    assert [m.id for m in client.models.list()] == ["tiny", "tools"] and client.models.retrieve("tiny").id == "tiny"
    assert fails(openai.NotFoundError, lambda: chat(model="gpt")).code == "model_not_found"
    assert fails(openai.BadRequestError, lambda: chat(temperature=3)).param == "temperature"
    long = [{"role": "user", "content": "word " * 20000}]
    assert fails(openai.BadRequestError, lambda: chat(messages=long)).code == "context_length_exceeded"
    fails(openai.AuthenticationError, lambda: client.with_options(api_key="x").models.list())
    unknown = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "minProperties": 1}}}
    assert fails(openai.BadRequestError, lambda: chat(response_format=unknown)).param == "response_format"


def cancellation():
    forever = {"extra_body": ENDLESS, "max_tokens": 16000}
    stream = chat(stream=True, **forever)
    next(iter(stream))
    stream.close()
    control("idle")
    fails(openai.APITimeoutError, lambda: chat(client.with_options(timeout=0.05), **forever))
    control("idle")


def busy():
    control("busy")
    refused = fails(openai.RateLimitError, lambda: chat(client))
    assert 1 <= int(refused.response.headers["retry-after"]) <= 60 and refused.request_id
    control("idle")
    control("busy")
    assert chat(patient).choices[0].message.content == ANSWER


def restarted():
    control("restart")
    assert chat(patient).choices[0].message.content == ANSWER


CASES = {
    "chat": whole,
    "streaming": stream,
    "structured output": structured,
    "tools, forced": forced,
    "tools, auto": auto,
    "errors": errors,
    "retry after 429": busy,
    "retry after 503, server restarted": restarted,
    "cancellation": cancellation,
    "responses": responses,
    "completions": completions,
    "logprobs": logprobs,
    "several choices, biases, penalties": lambda: (choices(), penalties()) and None,
    "canvas": canvas,
}
sys.exit(asyncio.run(run("openai", CASES, "openai-python")) > 0)
