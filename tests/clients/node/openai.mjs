// Calls of the SDK `openai`. `node openai.mjs CASE URL MODEL` prints the result as JSON.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [name, url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: name === "retry" ? 1 : 0 });
const messages = [{ role: "user", content: "Weather in Oslo?" }];
const City = z.object({ city: z.string() });
const weather = { name: "weather", parameters: City, function: ({ city }) => `Rain in ${city}.` };

const cases = {
  async create() {
    const completion = await client.chat.completions.create({ model, messages });
    return { text: completion.choices[0].message.content, usage: completion.usage };
  },
  async stream() {
    const stream = client.chat.completions.stream({
      model,
      messages,
      tools: [zodFunction(weather)],
      stream_options: { include_usage: true },
    });
    const completion = await stream.finalChatCompletion();
    return { call: completion.choices[0].message.tool_calls[0].function, usage: completion.usage };
  },
  async tools() {
    const runner = client.chat.completions.runTools({ model, messages, tools: [zodFunction(weather)] });
    return { text: await runner.finalContent() };
  },
  async parse() {
    const completion = await client.chat.completions.parse({
      model,
      messages,
      response_format: zodResponseFormat(City, "city"),
    });
    return { parsed: completion.choices[0].message.parsed };
  },
  async embeddings() {
    const { data } = await client.embeddings.create({ model, input: ["a", "ab"] });
    return { vectors: data.map((each) => each.embedding) };
  },
  async models() {
    const { data } = await client.models.list();
    return { models: data.map((each) => each.id) };
  },
  async cut() {
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
    return { text };
  },
  async abort() {
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const _ of stream) break; // leaving the loop aborts the request
    return {};
  },
};
cases.retry = cases.rejected = cases.create;

try {
  console.log(JSON.stringify(await cases[name]()));
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  const { status, code, param, message } = error;
  console.log(JSON.stringify({ error: { status, code, param, message } }));
}
