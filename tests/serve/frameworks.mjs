// What Vercel's AI SDK does with the server: frameworks.mjs URL CONTROL. A line per case (see clients.py).
//
// @ai-sdk/openai uses /v1/responses by default, @ai-sdk/openai-compatible chats.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, streamText, tool } from "ai";
import { z } from "zod";
import { ANSWER, Answer, ask, question, run, url } from "./cases.mjs";

const settings = { baseURL: url + "/v1", apiKey: "secret" };
const openai = createOpenAI(settings);
const compatible = createOpenAICompatible({ ...settings, name: "dlxc", supportsStructuredOutputs: true, includeUsage: true });
// The SDK has no field for `ignore_eos`, so answers that do not end by themselves get it on their way.
const endless = {
  ...settings,
  fetch: (to, sent) => fetch(to, { ...sent, body: JSON.stringify({ ...JSON.parse(sent.body), ignore_eos: true }) }),
};
const stranger = createOpenAICompatible({ ...settings, name: "dlxc", apiKey: "x" });
const add = tool({
  description: "Adds two numbers.",
  inputSchema: z.object({ a: z.number().int().min(0).max(99), b: z.number().int().min(0).max(99) }),
});
const messages = [question];
const status = (code) => (e) => APICallError.isInstance(e) && e.statusCode === code;

// The cases of a way to name models; `forever` names one whose answers do not end.
const cases = (model, forever) => {
  const asked = { model: model("tiny"), messages, maxRetries: 0 };
  const generate = (more = {}) => generateText({ ...asked, ...more });
  const stream = (more = {}) => {
    const failed = [];
    return { failed, result: streamText({ ...asked, onError: (e) => failed.push(e.error), ...more }) };
  };
  const read = async (parts) => {
    let text = "";
    for await (const part of parts) text += part;
    return text;
  };
  return {
    chat: async () => {
      const answer = await generate({ system: "Be brief." });
      assert.equal(answer.text, ANSWER);
      assert.equal(answer.finishReason, "stop");
      assert.ok(answer.usage.outputTokens > 5);
    },
    streaming: async () => {
      const { result, failed } = stream();
      assert.equal(await read(result.textStream), ANSWER);
      assert.ok((await result.usage).outputTokens > 5);
      assert.deepEqual(failed, []);
    },
    "structured output": async () => {
      Answer.parse((await generate({ output: Output.object({ schema: Answer }) })).output);
    },
    "tools, forced": async () => {
      for (const toolChoice of ["required", { type: "tool", toolName: "add" }]) {
        const answer = await generate({ tools: { add }, toolChoice });
        assert.equal(answer.finishReason, "tool-calls");
        const { result } = stream({ tools: { add }, toolChoice });
        await result.consumeStream();
        assert.deepEqual((await result.toolCalls)[0].input, answer.toolCalls[0].input);
      }
    },
    "tools, auto": async () => {
      const asked = { model: model("tools"), tools: { add }, maxOutputTokens: 60 };
      const answer = await generate(asked);
      assert.equal(await read(stream(asked).result.textStream), answer.text);
      const called = await generate({ ...asked, toolChoice: "required" });
      const { toolCallId, toolName } = called.toolCalls[0];
      const result = { type: "tool-result", toolCallId, toolName, output: { type: "text", value: "72" } };
      const turns = [question, ...called.response.messages, { role: "tool", content: [result] }];
      assert.ok((await generate({ ...asked, messages: turns })).finishReason);
    },
    errors: async () => {
      await assert.rejects(generate({ model: model("gpt") }), status(404));
      await assert.rejects(generate({ temperature: 3 }), status(400));
      await assert.rejects(generate({ model: stranger("tiny") }), status(401));
    },
    "retry after 429": async () => {
      await ask("busy");
      assert.equal((await generate({ maxRetries: 2 })).text, ANSWER);
    },
    "retry after 503, server restarted": async () => {
      await ask("restart");
      assert.equal((await generate({ maxRetries: 2 })).text, ANSWER);
    },
    cancellation: async () => {
      const long = { model: forever("tiny"), maxOutputTokens: 16000 };
      const stop = new AbortController();
      const { result } = stream({ ...long, abortSignal: stop.signal });
      for await (const _ of result.textStream) stop.abort();
      await ask("idle");
      await assert.rejects(generate({ ...long, abortSignal: AbortSignal.timeout(100) }), /abort|timeout/i);
      await ask("idle");
    },
  };
};

const refused = async () => {
  const asked = { model: openai("tiny"), messages, maxRetries: 0, tools: { add }, toolChoice: "required" };
  await assert.rejects(generateText(asked), (e) => status(400)(e) && e.data.error.param === "tools");
  return "refused by name";
};

await run("@ai-sdk/openai-compatible", cases(compatible, createOpenAICompatible({ ...endless, name: "dlxc" })));
await run("@ai-sdk/openai", {
  ...cases(openai, createOpenAI(endless)),
  "tools, forced": refused,
  "tools, auto": refused,
  // By default a second turn refers to the first answer by its id, as if it were stored; that is refused by name.
  "second turn with store: false": async () => {
    const answer = await generateText({ model: openai("tiny"), messages, maxRetries: 0 });
    const turns = [question, ...answer.response.messages, question];
    await assert.rejects(generateText({ model: openai("tiny"), messages: turns, maxRetries: 0 }), /store: false/);
    const providerOptions = { openai: { store: false } };
    const again = await generateText({ model: openai("tiny"), messages: turns, maxRetries: 0, providerOptions });
    assert.ok(again.text.length > 0);
  },
});
