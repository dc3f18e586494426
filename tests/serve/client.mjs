// What openai-node does with the server: client.mjs URL. Prints a line per case and fails with the first that is wrong.
import assert from "node:assert/strict";
import OpenAI from "openai";

const url = process.argv[2];
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "secret", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const ANSWER = "The capital of France is Paris.";
const chat = (more = {}, options = {}) => client.chat.completions.create({ model: "tiny", messages, ...more }, options);
const done = (name) => console.log(`openai-node on Node ${process.version}: ${name}`);

const answer = await chat();
assert.equal(answer.choices[0].message.content, ANSWER);
done("chat");

let text = "";
let usage;
for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, ANSWER);
assert.equal(usage.completion_tokens, answer.usage.completion_tokens);
done("stream");

let pieces = "";
const helper = client.chat.completions.stream({ model: "tiny", messages });
helper.on("content", (delta) => (pieces += delta));
const final = await helper.finalChatCompletion();
assert.equal(final.choices[0].message.content, ANSWER);
assert.equal(pieces, ANSWER);
done("stream helper");

const stream_options = { include_canvas: true };
let seen = 0;
for await (const chunk of await chat({ stream: true, stream_options })) seen += chunk.canvas ? 1 : 0;
assert.ok(seen > 5);
const shown = client.chat.completions.stream({ model: "tiny", messages, stream_options });
assert.equal((await shown.finalChatCompletion()).choices[0].message.content, ANSWER);
done("canvas");

const whole = await client.completions.create({ model: "tiny", prompt: "Once upon a time", max_tokens: 8 });
let parts = "";
for await (const part of await client.completions.create({
  model: "tiny", prompt: "Once upon a time", max_tokens: 8, stream: true,
})) parts += part.choices[0]?.text ?? "";
assert.equal(parts, whole.choices[0].text);
done("completions");

const told = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
assert.equal(told.map((t) => t.token).join(""), ANSWER);
assert.equal(Buffer.from(told.flatMap((t) => t.bytes)).toString(), ANSWER);
let streamed = [];
for await (const chunk of await chat({ logprobs: true, top_logprobs: 2, stream: true })) {
  streamed = streamed.concat(chunk.choices[0]?.logprobs?.content ?? []);
}
assert.deepEqual(streamed, told);
const telling = client.chat.completions.stream({ model: "tiny", messages, logprobs: true, top_logprobs: 2 });
assert.deepEqual((await telling.finalChatCompletion()).choices[0].logprobs.content, told);
const places = await client.completions.create({ model: "tiny", prompt: "Once upon a time", max_tokens: 8, logprobs: 2 });
assert.equal(places.choices[0].logprobs.tokens.join(""), places.choices[0].text);
done("logprobs");
const input = messages[0].content;
const response = await client.responses.create({ model: "tiny", input });
assert.equal(response.output_text, ANSWER);
let deltas = "";
for await (const event of await client.responses.create({ model: "tiny", input, stream: true }))
  if (event.type === "response.output_text.delta") deltas += event.delta;
assert.equal(deltas, ANSWER);
assert.equal((await client.responses.stream({ model: "tiny", input }).finalResponse()).output_text, ANSWER);
const turns = [...messages, ...response.output, ...messages];
assert.equal((await client.responses.create({ model: "tiny", input: turns })).status, "completed");
await assert.rejects(
  client.responses.create({ model: "tiny", input, previous_response_id: response.id }),
  (e) => e instanceof OpenAI.BadRequestError && e.param === "previous_response_id",
);
done("responses");

assert.deepEqual((await client.models.list()).data.map((m) => m.id), ["tiny"]);
assert.equal((await client.models.retrieve("tiny")).id, "tiny");
done("models");

await assert.rejects(chat({ model: "gpt" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
await assert.rejects(chat({ temperature: 3 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
const stranger = new OpenAI({ baseURL: url + "/v1", apiKey: "x" });
await assert.rejects(stranger.models.list(), (e) => e instanceof OpenAI.AuthenticationError);
done("errors");

const metrics = async () => {
  const lines = await (await fetch(url + "/metrics", { headers: { authorization: "Bearer secret" } })).text();
  const busy = lines.split("\n").filter((l) => /^dlxc_requests_(running|waiting)\{/.test(l));
  return busy.reduce((sum, l) => sum + Number(l.split(" ").at(-1)), 0);
};
const idle = async () => {
  for (let i = 0; i < 500; i++) {
    if ((await metrics()) === 0) return;
    await new Promise((r) => setTimeout(r, 10));
  }
  assert.fail("an answer runs on for nobody");
};
const forever = { ignore_eos: true, max_tokens: 4000 };
const stream = await chat({ stream: true, ...forever });
for await (const _ of stream) break;
await idle();
await assert.rejects(chat(forever, { timeout: 50 }), (e) => e instanceof OpenAI.APIConnectionTimeoutError);
await idle();
done("cancellation");

const busy = await Promise.all([1, 2, 3].map(() => chat({ stream: true, ...forever })));
await assert.rejects(chat(), (e) => e instanceof OpenAI.RateLimitError && e.headers.get("retry-after") >= 1);
setTimeout(() => busy.forEach((b) => b.controller.abort()), 300);
assert.equal((await chat({}, { maxRetries: 2 })).choices[0].message.content, ANSWER);
done("retries");
