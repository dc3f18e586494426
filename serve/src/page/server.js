// The server: models, answers as they come, metrics. Paths are relative, so that the page works behind any prefix.

const at = (path) => new URL(path, document.baseURI);

/** The key is kept as long as the tab. */
export const key = {
  get: () => sessionStorage.getItem("dlxc-key") ?? "",
  set: (value) => (value ? sessionStorage.setItem("dlxc-key", value) : sessionStorage.removeItem("dlxc-key")),
};

/** What the server refused, or that it does not answer (`status` 0). */
export class Refused extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(path, options = {}) {
  const headers = { ...(options.body && { "content-type": "application/json" }), ...(key.get() && { authorization: `Bearer ${key.get()}` }) };
  let answer;
  try {
    answer = await fetch(at(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server does not answer", 0);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(told.error?.message ?? `status ${answer.status}`, answer.status, Number(answer.headers.get("retry-after")) || undefined);
}

/** Names of the models that are served. */
export const models = async () => (await (await ask("v1/models")).json()).data.map((model) => model.id);

/** The text of the metrics. */
export const metrics = async () => (await ask("metrics")).text();

/** Events of a stream, one by one; an event that is an error is thrown. */
export async function* stream(path, body, signal) {
  const answer = await ask(path, { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused("the connection was cut", 0);
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const event = text.slice(0, end);
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new Refused(data.error.message, 500);
      yield data;
    }
  }
}
