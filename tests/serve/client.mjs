// What openai-node does with the server: client.mjs URL CONTROL. A line per case (see clients.py).
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { ANSWER, Answer, ask, question, run, url } from "./cases.mjs";

const client = new OpenAI({ baseURL: url + "/v1", apiKey: "secret", maxRetries: 0 });
const messages = [question];
const chat = (more = {}, options = {}) => client.chat.completions.create({ model: "tiny", messages, ...more }, options);
const forever = { ignore_eos: true, max_tokens: 16000 };
// The model would end this text at once.
const started = { model: "tiny", prompt: "Once upon a time", max_tokens: 8, min_tokens: 8 };
const tools = [zodFunction({ name: "Answer", parameters: Answer })];

await run("openai", {
  chat: async () => {
    const answer = await chat();
    assert.equal(answer.choices[0].message.content, ANSWER);
    assert.equal(answer.choices[0].finish_reason, "stop");
  },
  streaming: async () => {
    let text = "";
    let usage;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, ANSWER);
    assert.equal(usage.completion_tokens, (await chat()).usage.completion_tokens);
    let pieces = "";
    const helper = client.chat.completions.stream({ model: "tiny", messages });
    helper.on("content", (delta) => (pieces += delta));
    const final = await helper.finalChatCompletion();
    assert.equal(final.choices[0].message.content, ANSWER);
    assert.equal(pieces, ANSWER);
  },
  "structured output": async () => {
    const response_format = zodResponseFormat(Answer, "answer");
    const parsed = await client.chat.completions.parse({ model: "tiny", messages, response_format });
    Answer.parse(parsed.choices[0].message.parsed);
    const streamed = await client.chat.completions.stream({ model: "tiny", messages, response_format }).finalChatCompletion();
    assert.deepEqual(streamed.choices[0].message.parsed, parsed.choices[0].message.parsed);
  },
  "tools, forced": async () => {
    for (const tool_choice of ["required", { type: "function", function: { name: "Answer" } }]) {
      const asked = { model: "tiny", messages, tools, tool_choice };
      const call = (await client.chat.completions.parse(asked)).choices[0].message.tool_calls[0];
      Answer.parse(call.function.parsed_arguments);
      const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
      assert.deepEqual(streamed.choices[0].message.tool_calls[0].function.parsed_arguments, call.function.parsed_arguments);
    }
  },
  "tools, auto": async () => {
    const asked = { model: "tools", messages, tools, max_tokens: 60 };
    const answer = await chat(asked);
    let text = "";
    for await (const chunk of await chat({ ...asked, stream: true })) text += chunk.choices[0]?.delta.content ?? "";
    assert.equal(text, answer.choices[0].message.content ?? "");
    const called = (await chat({ ...asked, max_tokens: undefined, tool_choice: "required" })).choices[0].message;
    const result = { role: "tool", tool_call_id: called.tool_calls[0].id, content: "72" };
    const after = await chat({ ...asked, messages: [question, called, result] });
    assert.ok(["stop", "length", "tool_calls"].includes(after.choices[0].finish_reason));
    await assert.rejects(chat({ tools }), (e) => e instanceof OpenAI.BadRequestError && e.param === "tools");
  },
  errors: async () => {
    assert.deepEqual((await client.models.list()).data.map((m) => m.id), ["tiny", "tools"]);
    assert.equal((await client.models.retrieve("tiny")).id, "tiny");
    await assert.rejects(chat({ model: "gpt" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
    await assert.rejects(chat({ temperature: 3 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
    const long = [{ role: "user", content: "word ".repeat(20000) }];
    await assert.rejects(chat({ messages: long }), (e) => e.code === "context_length_exceeded");
    await assert.rejects(client.withOptions({ apiKey: "x" }).models.list(), (e) => e instanceof OpenAI.AuthenticationError);
  },
  "retry after 429": async () => {
    await ask("busy");
    await assert.rejects(chat(), (e) => e instanceof OpenAI.RateLimitError && e.headers.get("retry-after") >= 1);
    await ask("idle");
    await ask("busy");
    assert.equal((await chat({}, { maxRetries: 2 })).choices[0].message.content, ANSWER);
  },
  "retry after 503, server restarted": async () => {
    await ask("restart");
    assert.equal((await chat({}, { maxRetries: 2 })).choices[0].message.content, ANSWER);
  },
  cancellation: async () => {
    for await (const _ of await chat({ stream: true, ...forever })) break;
    await ask("idle");
    await assert.rejects(chat(forever, { timeout: 50 }), (e) => e instanceof OpenAI.APIConnectionTimeoutError);
    await ask("idle");
    const stop = new AbortController();
    setTimeout(() => stop.abort(), 100);
    await assert.rejects(chat(forever, { signal: stop.signal }), (e) => e instanceof OpenAI.APIUserAbortError);
    await ask("idle");
  },
  responses: async () => {
    const input = question.content;
    const response = await client.responses.create({ model: "tiny", input });
    assert.equal(response.output_text, ANSWER);
    let deltas = "";
    for await (const event of await client.responses.create({ model: "tiny", input, stream: true }))
      if (event.type === "response.output_text.delta") deltas += event.delta;
    assert.equal(deltas, ANSWER);
    assert.equal((await client.responses.stream({ model: "tiny", input }).finalResponse()).output_text, ANSWER);
    const turns = [question, ...response.output, question];
    assert.equal((await client.responses.create({ model: "tiny", input: turns })).status, "completed");
    await assert.rejects(
      client.responses.create({ model: "tiny", input, previous_response_id: response.id }),
      (e) => e instanceof OpenAI.BadRequestError && e.param === "previous_response_id",
    );
  },
  completions: async () => {
    const whole = await client.completions.create(started);
    assert.ok(whole.choices[0].text);
    let parts = "";
    for await (const part of await client.completions.create({ ...started, stream: true }))
      parts += part.choices[0]?.text ?? "";
    assert.equal(parts, whole.choices[0].text);
  },
  logprobs: async () => {
    const told = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
    assert.equal(told.map((t) => t.token).join(""), ANSWER);
    assert.equal(Buffer.from(told.flatMap((t) => t.bytes)).toString(), ANSWER);
    let streamed = [];
    for await (const chunk of await chat({ logprobs: true, top_logprobs: 2, stream: true }))
      streamed = streamed.concat(chunk.choices[0]?.logprobs?.content ?? []);
    assert.deepEqual(streamed, told);
    const telling = client.chat.completions.stream({ model: "tiny", messages, logprobs: true, top_logprobs: 2 });
    assert.deepEqual((await telling.finalChatCompletion()).choices[0].logprobs.content, told);
    const places = await client.completions.create({ ...started, logprobs: 2 });
    assert.equal(places.choices[0].logprobs.tokens.join(""), places.choices[0].text);
  },
  canvas: async () => {
    const stream_options = { include_canvas: true };
    let seen = 0;
    for await (const chunk of await chat({ stream: true, stream_options })) seen += chunk.canvas ? 1 : 0;
    // A client that reads slowly is not sent all of them.
    assert.ok(seen > 0);
    const shown = client.chat.completions.stream({ model: "tiny", messages, stream_options });
    assert.equal((await shown.finalChatCompletion()).choices[0].message.content, ANSWER);
  },
});
