"""What pydantic-ai and the OpenAI Agents SDK do with the server by default: frameworks.py URL. Both use /v1/responses."""

import asyncio
import sys
from importlib.metadata import version

import agents
import openai
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
client = openai.AsyncOpenAI(base_url=sys.argv[1] + "/v1", api_key="secret", max_retries=0)


def case(package, name):
    print(f"{package} {version(package)}: {name}", flush=True)


async def main():
    model = OpenAIResponsesModel("tiny", provider=OpenAIProvider(openai_client=client))
    agent = Agent(model, instructions="Be brief.")
    answer = await agent.run(QUESTION)
    assert answer.output == ANSWER and answer.usage.output_tokens > 5
    case("pydantic-ai-slim", "answer")
    assert (await agent.run(QUESTION, message_history=answer.all_messages())).output
    case("pydantic-ai-slim", "second turn")
    async with agent.run_stream(QUESTION) as stream:
        assert await stream.get_output() == ANSWER
    case("pydantic-ai-slim", "stream")

    agents.set_tracing_disabled(True)
    agents.set_default_openai_client(client)
    agent = agents.Agent(name="Brief", instructions="Be brief.", model="tiny")
    answer = await agents.Runner.run(agent, QUESTION)
    assert answer.final_output == ANSWER
    case("openai-agents", "answer")
    turns = [*answer.to_input_list(), {"role": "user", "content": QUESTION}]
    assert (await agents.Runner.run(agent, turns)).final_output
    case("openai-agents", "second turn")
    stream = agents.Runner.run_streamed(agent, QUESTION)
    kinds = [event.type async for event in stream.stream_events()]
    assert stream.final_output == ANSWER and "raw_response_event" in kinds
    case("openai-agents", "stream")


asyncio.run(main())
