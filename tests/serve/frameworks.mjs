// What Vercel's AI SDK does with the server by default, which is /v1/responses: frameworks.mjs URL.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

const openai = createOpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "secret" });
const question = { role: "user", content: "What is the capital of France?" };
const ANSWER = "The capital of France is Paris.";
const done = (name) => console.log(`ai and @ai-sdk/openai: ${name}`);

const answer = await generateText({ model: openai("tiny"), messages: [question], maxRetries: 0 });
assert.equal(answer.text, ANSWER);
assert.equal(answer.finishReason, "stop");
done("answer");

let text = "";
const stream = streamText({ model: openai("tiny"), system: "Be brief.", messages: [question], maxRetries: 0 });
for await (const part of stream.textStream) text += part;
assert.equal(text, ANSWER);
done("stream");

// By default a second turn refers to the first answer by its id, as if it were stored; that is refused by name.
const messages = [question, ...answer.response.messages, question];
await assert.rejects(generateText({ model: openai("tiny"), messages, maxRetries: 0 }), /store: false/);
const again = await generateText({
  model: openai("tiny"), messages, maxRetries: 0, providerOptions: { openai: { store: false } },
});
assert.ok(again.text.length > 0);
done("second turn with store: false");

const chat = await generateText({ model: openai.chat("tiny"), messages: [question], maxRetries: 0 });
assert.equal(chat.text, ANSWER);
done("openai.chat");
