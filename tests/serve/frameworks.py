"""What litellm, LangChain, pydantic-ai and the OpenAI Agents SDK do with the server: frameworks.py URL CONTROL.

A line per case (see clients.py). The first two use chats, pydantic-ai both ways, the Agents SDK /v1/responses.
"""

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import agents
import litellm
import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from cases import ANSWER, ENDLESS, KEY, MESSAGES, QUESTION, URL, Answer, afails, control, cut, run

BASE = URL + "/v1"
LONG = "word " * 20000
BUSY, RESTARTED = "retry after 429", "retry after 503, server restarted"


def retries(what, ask):
    """A case: a client that tries again is answered once the server can."""

    async def case():
        await asyncio.to_thread(control, what)
        assert await ask() == ANSWER

    return case


# litellm

litellm.drop_params = False
litellm.suppress_debug_info = True
FUNCTION = {"type": "function", "function": {"name": "Answer", "description": "Answers.", "parameters": Answer.model_json_schema()}}


def lite(model="tiny", messages=MESSAGES, **more):
    more = {"api_key": KEY, "max_retries": 0} | more
    return litellm.acompletion(model=f"openai/{model}", api_base=BASE, messages=messages, **more)


async def lite_text(**more):
    return (await lite(**more)).choices[0].message.content


async def lite_chat():
    answer = await lite()
    assert answer.choices[0].message.content == ANSWER and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def lite_stream():
    chunks = [c async for c in await lite(stream=True, stream_options={"include_usage": True})]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert [c.usage.completion_tokens for c in chunks if getattr(c, "usage", None)]


async def lite_structured():
    Answer.model_validate_json(await lite_text(response_format=Answer))
    assert isinstance(json.loads(await lite_text(response_format={"type": "json_object"}, max_tokens=2000)), dict)


async def lite_forced():
    for choice in ["required", {"type": "function", "function": {"name": "Answer"}}]:
        call = (await lite(tools=[FUNCTION], tool_choice=choice)).choices[0].message.tool_calls[0]
        chunks = [c async for c in await lite(tools=[FUNCTION], tool_choice=choice, stream=True)]
        whole = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0]
        assert Answer.model_validate_json(whole.function.arguments) == Answer.model_validate_json(call.function.arguments)


async def lite_auto():
    answer = (await lite(model="tools", tools=[FUNCTION], max_tokens=60)).choices[0].message
    chunks = [c async for c in await lite(model="tools", tools=[FUNCTION], max_tokens=60, stream=True)]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == (answer.content or "")
    called = (await lite(model="tools", tools=[FUNCTION], tool_choice="required")).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "72"}
    assert await lite(model="tools", messages=[*MESSAGES, called, result], tools=[FUNCTION], max_tokens=60)


async def lite_errors():
    await afails(litellm.NotFoundError, lite(model="gpt"))
    await afails(litellm.BadRequestError, lite(temperature=3))
    await afails(litellm.AuthenticationError, lite(api_key="x"))
    await afails(litellm.ContextWindowExceededError, lite(messages=[{"role": "user", "content": LONG}]))
    await asyncio.to_thread(control, "busy")
    await afails(litellm.RateLimitError, lite())
    await asyncio.to_thread(control, "idle")


async def lite_cancellation():
    stream = await lite(stream=True, max_tokens=16000, extra_body=ENDLESS)
    await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(control, "idle")
    await cut(lite(max_tokens=16000, extra_body=ENDLESS))
    await afails(litellm.Timeout, lite(max_tokens=16000, extra_body=ENDLESS, timeout=0.1))
    await asyncio.to_thread(control, "idle")


LITELLM = {
    "chat": lite_chat, "streaming": lite_stream, "structured output": lite_structured, "tools, forced": lite_forced,
    "tools, auto": lite_auto, "errors": lite_errors, BUSY: retries("busy", lambda: lite_text(max_retries=2)),
    RESTARTED: retries("restart", lambda: lite_text(max_retries=2)), "cancellation": lite_cancellation,
}

def total(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


# LangChain


def lang(model="tiny", **more):
    return ChatOpenAI(**({"model": model, "base_url": BASE, "api_key": KEY, "max_retries": 0} | more))


add = tool("add")(total)


async def lang_text(**more):
    return (await lang(**more).ainvoke(QUESTION)).content


async def lang_chat():
    answer = await lang().ainvoke([("system", "Be brief."), ("user", QUESTION)])
    assert answer.content == ANSWER and answer.usage_metadata["output_tokens"] > 5


async def lang_stream():
    chunks = [c async for c in lang(stream_usage=True).astream(QUESTION)]
    assert "".join(c.content for c in chunks) == ANSWER and any(c.usage_metadata for c in chunks)


async def lang_structured():
    for method in ["json_schema", "function_calling"]:
        assert isinstance(await lang().with_structured_output(Answer, method=method).ainvoke(QUESTION), Answer), method
    chunks = [c async for c in lang().with_structured_output(Answer).astream(QUESTION)]
    assert isinstance(chunks[-1], Answer)


async def lang_forced():
    for choice in ["any", "required", "add"]:
        call = (await lang().bind_tools([add], tool_choice=choice).ainvoke(QUESTION)).tool_calls[0]
        assert call["name"] == "add" and all(isinstance(call["args"][k], int) for k in "ab")
    whole = None
    async for chunk in lang().bind_tools([add], tool_choice="add").astream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == call["args"]


async def lang_auto():
    model = lang("tools", max_tokens=60)
    assert (await model.bind_tools([add]).ainvoke(QUESTION)).response_metadata["finish_reason"] in ("stop", "length", "tool_calls")
    called = await model.bind_tools([add], tool_choice="add").ainvoke(QUESTION)
    result = await add.ainvoke(called.tool_calls[0])
    assert (await model.bind_tools([add]).ainvoke([("user", QUESTION), called, result])).response_metadata["finish_reason"]


async def lang_errors():
    await afails(openai.NotFoundError, lang("gpt").ainvoke(QUESTION))
    assert (await afails(openai.BadRequestError, lang(temperature=3).ainvoke(QUESTION))).param == "temperature"
    await afails(openai.AuthenticationError, lang(api_key="x").ainvoke(QUESTION))
    await afails(ContextOverflowError, lang().ainvoke(LONG))


async def lang_cancellation():
    endless = lang(max_tokens=16000, extra_body=ENDLESS)
    stream = endless.astream(QUESTION)
    await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(control, "idle")
    await cut(endless.ainvoke(QUESTION))


LANGCHAIN = {
    "chat": lang_chat, "streaming": lang_stream, "structured output": lang_structured, "tools, forced": lang_forced,
    "tools, auto": lang_auto, "errors": lang_errors, BUSY: retries("busy", lambda: lang_text(max_retries=2)),
    RESTARTED: retries("restart", lambda: lang_text(max_retries=2)), "cancellation": lang_cancellation,
}

# pydantic-ai, by chats and by responses

CLIENTS = {n: openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=n) for n in (0, 2)}


def agent(kind, name="tiny", retried=0, **more):
    return Agent(kind(name, provider=OpenAIProvider(openai_client=CLIENTS[retried])), **more)


def pydantic(kind):
    settings = {"max_tokens": 16000, "extra_body": ENDLESS}

    async def text(retried=0):
        return (await agent(kind, retried=retried).run(QUESTION)).output

    async def chat():
        answer = await agent(kind, instructions="Be brief.").run(QUESTION)
        assert answer.output == ANSWER and answer.usage.output_tokens > 5
        assert (await agent(kind).run(QUESTION, message_history=answer.all_messages())).output

    async def stream():
        async with agent(kind).run_stream(QUESTION) as stream:
            assert await stream.get_output() == ANSWER

    async def structured():
        answer = await agent(kind, output_type=NativeOutput(Answer)).run(QUESTION)
        assert isinstance(answer.output, Answer)

    async def forced():
        answer = await agent(kind, output_type=ToolOutput(Answer)).run(QUESTION)
        assert isinstance(answer.output, Answer)
        async with agent(kind, output_type=ToolOutput(Answer)).run_stream(QUESTION) as stream:
            assert await stream.get_output() == answer.output

    async def auto():
        helped = agent(kind, "tools", model_settings={"max_tokens": 60})
        helped.tool_plain(total)
        assert isinstance((await helped.run(QUESTION)).output, str)

    async def refused():
        error = await afails(ModelHTTPError, agent(kind, output_type=ToolOutput(Answer)).run(QUESTION))
        assert (error.status_code, error.body["param"]) == (400, "tools")
        return "refused by name"

    async def errors():
        assert (await afails(ModelHTTPError, agent(kind, "gpt").run(QUESTION))).status_code == 404
        error = await afails(ModelHTTPError, agent(kind, model_settings={"temperature": 3}).run(QUESTION))
        assert (error.status_code, error.body["param"]) == (400, "temperature")

    async def cancellation():
        endless = agent(kind, model_settings=settings)
        async with endless.run_stream(QUESTION) as stream:
            await anext(stream.stream_text(debounce_by=None))
            await stream.cancel()
        await asyncio.to_thread(control, "idle")
        await cut(endless.run(QUESTION))

    cases = {"chat": chat, "streaming": stream, "structured output": structured, "tools, forced": forced, "tools, auto": auto,
             "errors": errors, BUSY: retries("busy", lambda: text(2)), RESTARTED: retries("restart", lambda: text(2)),
             "cancellation": cancellation}
    return cases if kind is OpenAIChatModel else cases | {"tools, forced": refused, "tools, auto": refused}


# OpenAI Agents SDK


def assistant(model="tiny", **more):
    return agents.Agent(name="Brief", instructions="Be brief.", model=model, **more)


async def agents_text():
    agents.set_default_openai_client(CLIENTS[2])
    try:
        return (await agents.Runner.run(assistant(), QUESTION)).final_output
    finally:
        agents.set_default_openai_client(CLIENTS[0])


async def agents_chat():
    answer = await agents.Runner.run(assistant(), QUESTION)
    assert answer.final_output == ANSWER
    turns = [*answer.to_input_list(), {"role": "user", "content": QUESTION}]
    assert (await agents.Runner.run(assistant(), turns)).final_output


async def agents_stream():
    stream = agents.Runner.run_streamed(assistant(), QUESTION)
    kinds = [event.type async for event in stream.stream_events()]
    assert stream.final_output == ANSWER and "raw_response_event" in kinds


async def agents_structured():
    assert isinstance((await agents.Runner.run(assistant(output_type=Answer), QUESTION)).final_output, Answer)


async def agents_errors():
    await afails(openai.NotFoundError, agents.Runner.run(assistant("gpt"), QUESTION))
    hot = agents.ModelSettings(temperature=3)
    assert (await afails(openai.BadRequestError, agents.Runner.run(assistant(model_settings=hot), QUESTION))).param == "temperature"


async def agents_cancellation():
    endless = assistant(model_settings=agents.ModelSettings(max_tokens=16000, extra_body=ENDLESS))
    stream = agents.Runner.run_streamed(endless, QUESTION)
    async for event in stream.stream_events():
        stream.cancel()
    await asyncio.to_thread(control, "idle")
    await cut(agents.Runner.run(endless, QUESTION))


AGENTS = {
    "chat": agents_chat, "streaming": agents_stream, "structured output": agents_structured, "errors": agents_errors,
    BUSY: retries("busy", agents_text), RESTARTED: retries("restart", agents_text), "cancellation": agents_cancellation,
}


async def main():
    agents.set_tracing_disabled(True)
    agents.set_default_openai_client(CLIENTS[0])
    failed = await run("litellm", LITELLM)
    failed += await run("langchain-openai", LANGCHAIN)
    failed += await run("pydantic-ai-slim", pydantic(OpenAIChatModel), "pydantic-ai (chats)")
    failed += await run("pydantic-ai-slim", pydantic(OpenAIResponsesModel), "pydantic-ai (responses)")
    failed += await run("openai-agents", AGENTS)
    return failed


sys.exit(asyncio.run(main()) > 0)
