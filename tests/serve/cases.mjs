// What the Node clients' scripts share: a table of cases, and what the runner does on request (see clients.py).
import { readFileSync } from "node:fs";
import { z } from "zod";

export const [url, control] = process.argv.slice(2);
export const question = { role: "user", content: "What is the capital of France?" };
export const ANSWER = "The capital of France is Paris.";
export const Answer = z.object({
  kind: z.enum(["sum", "other"]),
  value: z.number().int().min(0).max(999),
  steps: z.array(z.string().max(20)).max(2),
});

// Asks the runner: "idle" (fails while an answer runs), "busy" (fills the queue until somebody was refused), "restart".
export const ask = async (what) => {
  const answer = await fetch(`${control}/${what}`);
  if (!answer.ok) throw new Error(`${what}: ${await answer.text()}`);
};

// Runs every case and prints a line for each; all of them run, whatever fails.
export async function run(name, cases) {
  const { version } = JSON.parse(readFileSync(new URL(`./node_modules/${name}/package.json`, import.meta.url)));
  for (const [title, test] of Object.entries(cases)) {
    let said;
    try {
      said = (await test()) ?? "good";
    } catch (error) {
      console.error(name, title, error);
      said = "FAILED";
      process.exitCode = 1;
    }
    console.log(`${name === "openai" ? "openai-node" : name} ${version}\t${title}\t${said}`);
  }
}
