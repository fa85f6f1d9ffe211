// Calls of the SDK `@anthropic-ai/sdk`. `node anthropic.mjs CASE URL MODEL` prints the result as JSON.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { z } from "zod";

const [name, url, model] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: name === "retry" ? 1 : 0 });
const messages = [{ role: "user", content: "Weather in Oslo?" }];
const tool = {
  name: "weather",
  input_schema: { type: "object", properties: { city: { type: "string" } } },
};
const request = { model, max_tokens: 64, messages };

const cases = {
  async create() {
    const message = await client.messages.create(request);
    return { text: message.content[0].text, stopReason: message.stop_reason, usage: message.usage };
  },
  async stream() {
    const stream = client.messages.stream({ ...request, tools: [tool] });
    const message = await stream.finalMessage();
    return { content: message.content, stopReason: message.stop_reason, usage: message.usage };
  },
  async tools() {
    const weather = betaZodTool({
      name: "weather",
      description: "Report the weather of a city.",
      inputSchema: z.object({ city: z.string() }),
      run: ({ city }) => `Rain in ${city}.`,
    });
    const message = await client.beta.messages.toolRunner({ ...request, tools: [weather] });
    return { text: message.content[0].text };
  },
  async count() {
    return client.messages.countTokens({ model, messages, tools: [tool] });
  },
  async cut() {
    let text = "";
    for await (const event of await client.messages.create({ ...request, stream: true })) {
      text += event.delta?.text ?? "";
    }
    return { text };
  },
  async abort() {
    const stream = await client.messages.create({ ...request, stream: true });
    for await (const event of stream) if (event.type === "content_block_delta") break;
    return {};
  },
};
cases.retry = cases.rejected = cases.create;

try {
  console.log(JSON.stringify(await cases[name]()));
} catch (error) {
  if (!(error instanceof Anthropic.APIError)) throw error;
  const { status, error: body } = error;
  console.log(JSON.stringify({ error: { status, body } }));
}
