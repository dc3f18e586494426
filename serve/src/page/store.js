// Conversations, in this browser's database: {id, title, changed, messages: [{role, text, told?, cut?}]}.

const VERSION = 1;

const open = new Promise((done, failed) => {
  const request = indexedDB.open("dlxc", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onsuccess = () => done(request.result);
  request.onerror = () => failed(request.error);
});

async function run(mode, what) {
  const store = (await open).transaction("conversations", mode).objectStore("conversations");
  return new Promise((done, failed) => {
    const request = what(store);
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
}

/** All of them, the latest first. */
export const all = async () => (await run("readonly", (s) => s.getAll())).sort((a, b) => b.changed - a.changed);
export const put = (conversation) => run("readwrite", (s) => s.put(conversation));
export const remove = (id) => run("readwrite", (s) => s.delete(id));

export const fresh = () => ({ id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), title: "", changed: Date.now(), messages: [] });

/** All conversations as a file's text. */
export const exported = async () => JSON.stringify({ version: VERSION, conversations: await all() }, null, 1);

/** A conversation out of a file, or nothing: what is in a file may be anything. */
function checked(it) {
  const text = (value) => typeof value === "string";
  const message = (m) => m && ["user", "assistant"].includes(m.role) && text(m.text);
  if (!it || !text(it.id) || !text(it.title) || !Number.isFinite(it.changed) || !Array.isArray(it.messages)) return;
  if (!it.messages.every(message)) return;
  const messages = it.messages.map(({ role, text: said, told, cut }) => ({ role, text: said, ...(text(told) && { told }), ...(cut === true && { cut }) }));
  return { id: it.id, title: it.title, changed: it.changed, messages };
}

/** Takes over the conversations of a file; of those that are here too, the later one stays. Says how many it took. */
export async function take(file) {
  let given;
  try {
    given = JSON.parse(file);
  } catch {
    throw new Error("the file is no JSON");
  }
  if (given?.version !== VERSION || !Array.isArray(given.conversations)) throw new Error("the file holds no conversations of this page");
  const here = new Map((await all()).map((c) => [c.id, c.changed]));
  let taken = 0;
  for (const conversation of given.conversations.map(checked)) {
    if (!conversation) throw new Error("a conversation in the file cannot be read");
    if (here.get(conversation.id) >= conversation.changed) continue;
    await put(conversation);
    taken += 1;
  }
  return taken;
}
