// Vercel's AI SDK through Tollgate, with its OpenAI and its Anthropic providers: only base URL and key are different.
//
//     TOLLGATE_KEY=tg-… node ai-sdk.mjs
//
// Needs `npm install`. `make run` prints the key.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.env.TOLLGATE_URL ?? "http://127.0.0.1:8080"}/v1`;
const apiKey = process.env.TOLLGATE_KEY;
const name = process.env.TOLLGATE_MODEL ?? "demo";
const prompt = "What is a tollgate?";
const openai = createOpenAI({ baseURL, apiKey });
const anthropic = createAnthropic({ baseURL, apiKey });
// What is not to be kept at the provider can be answered by any of them.
const providerOptions = { openai: { store: false } };

async function show(api, model) {
  console.log("API:", api);
  const answer = await generateText({ model, prompt, providerOptions, maxOutputTokens: 50 });
  console.log("Answer:", answer.text);

  // A stream.
  process.stdout.write("Stream: ");
  const stream = streamText({ model, prompt, providerOptions, maxOutputTokens: 50 });
  for await (const text of stream.textStream) process.stdout.write(text);
  const usage = await stream.usage;
  console.log("\nUsage:", usage.inputTokens, "in,", usage.outputTokens, "out");

  // A tool, which the SDK calls when the model asks. (What is in brackets is for the simulator of the demo.)
  const told = await generateText({
    model,
    providerOptions,
    maxOutputTokens: 50,
    prompt: 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]',
    stopWhen: stepCountIs(2),
    tools: {
      get_weather: tool({
        description: "The weather in a city.",
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => {
          console.log("Tool: get_weather", city);
          return "4 degrees, rain";
        },
      }),
    },
  });
  console.log("Told:", told.text);

  // An image to look at.
  const image = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
  const content = [
    { type: "text", text: "What is to be seen?" },
    { type: "image", image, mediaType: "image/png" },
  ];
  const seen = await generateText({ model, providerOptions, messages: [{ role: "user", content }] });
  console.log("Image:", seen.text);
}

await show("chat", openai.chat(name));
await show("responses", openai.responses(name));
await show("messages", anthropic(name));

// An answer of a given form.
const form = z.object({ road: z.string(), euros: z.number() });
const formed = await generateText({ model: openai.chat(name), prompt, output: Output.object({ schema: form }) });
console.log("Schema:", JSON.stringify(formed.output));

// A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
async function refuse(why, apiKey, model) {
  try {
    await generateText({ model: createOpenAI({ baseURL, apiKey }).chat(model), prompt, maxRetries: 0 });
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error;
    console.log(`${why}: ${error.statusCode} ${error.message}`);
  }
}
await refuse("Wrong key", "tg-wrong", name);
await refuse("Unknown model", apiKey, "a-model-nobody-registered");
if (process.env.TOLLGATE_SPENT_KEY) await refuse("Budget used up", process.env.TOLLGATE_SPENT_KEY, name);
