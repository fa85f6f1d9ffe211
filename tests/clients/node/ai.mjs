// Calls of the package `ai`. `node ai.mjs CASE PROVIDER URL MODEL` prints the result as JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  Output,
  embedMany,
  generateText,
  stepCountIs,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

const [name, provider, url, modelId] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const apiKey = "none";
const compatible = createOpenAICompatible({
  name: "chatrpc",
  baseURL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey });
const model = {
  compatible: () => compatible(modelId),
  chat: () => openai.chat(modelId),
  responses: () => openai.responses(modelId),
  completion: () => openai.completion(modelId),
  anthropic: () => createAnthropic({ baseURL, apiKey })(modelId),
}[provider]();
const City = z.object({ city: z.string() });
const weather = tool({
  description: "Report the weather of a city.",
  inputSchema: City,
  execute: ({ city }) => `Rain in ${city}.`,
});
const request = {
  model,
  system: "Be brief.",
  prompt: "Weather in Oslo?",
  maxOutputTokens: 64,
  maxRetries: name === "retry" ? 1 : 0,
  // Otherwise the provider sends references to the items of earlier responses.
  providerOptions: { openai: { store: false } },
};
const agent = { ...request, tools: { weather }, stopWhen: stepCountIs(3) };

const cases = {
  async generate() {
    const { text, finishReason, usage } = await generateText(request);
    return { text, finishReason, usage };
  },
  async stream() {
    const result = streamText(request);
    let text = "";
    for await (const delta of result.textStream) text += delta;
    return { text, finishReason: await result.finishReason, usage: await result.usage };
  },
  async tools() {
    const { text, steps } = await generateText(agent);
    return { text, reasoning: steps[0].reasoningText, results: steps[0].toolResults };
  },
  async streamTools() {
    const result = streamText(agent);
    const [text, steps] = [await result.text, await result.steps];
    return { text, reasoning: steps[0].reasoningText, results: steps[0].toolResults };
  },
  async object() {
    const { output } = await generateText({ ...request, output: Output.object({ schema: City }) });
    return { output };
  },
  async embed() {
    const { embeddings } = await embedMany({
      model: openai.embedding(modelId),
      values: ["a", "ab"],
    });
    return { embeddings };
  },
  async cut() {
    const parts = [];
    const result = streamText({ ...request, onError: () => {} });
    for await (const part of result.fullStream) parts.push(part.type);
    return { parts };
  },
};
cases.retry = cases.rejected = cases.generate;

try {
  console.log(JSON.stringify(await cases[name]()));
} catch (error) {
  if (!APICallError.isInstance(error)) throw error;
  const { statusCode, message, isRetryable } = error;
  console.log(JSON.stringify({ error: { statusCode, message, isRetryable } }));
}
