// The official OpenAI SDK through Tollgate: only base URL and key are different.
//
//     TOLLGATE_KEY=tg-… node openai.mjs
//
// Needs `npm install`. `make run` prints the key.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = process.env.TOLLGATE_URL ?? "http://127.0.0.1:8080";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.env.TOLLGATE_KEY });
const model = process.env.TOLLGATE_MODEL ?? "demo";
const question = [{ role: "user", content: "What is a tollgate?" }];

const models = [];
for await (const { id } of client.models.list()) models.push(id);
console.log("Models:", models.join(" "));

// A whole answer.
const answer = await client.chat.completions.create({ model, messages: question });
console.log("Answer:", answer.choices[0].message.content);

// A stream, with its usage at the end.
const stream = await client.chat.completions.create({
  model,
  messages: question,
  stream: true,
  stream_options: { include_usage: true },
});
process.stdout.write("Stream: ");
for await (const { choices, usage } of stream) {
  process.stdout.write(choices[0]?.delta.content ?? "");
  if (usage) console.log("\nUsage:", usage.prompt_tokens, "in,", usage.completion_tokens, "out");
}

// A tool, which the SDK calls when the model asks. (What is in brackets is for the simulator of the demo.)
const runner = client.chat.completions.runTools({
  model,
  messages: [
    { role: "user", content: 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]' },
  ],
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "The weather in a city.",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
        parse: JSON.parse,
        function: ({ city }) => {
          console.log("Tool: get_weather", city);
          return "4 degrees, rain";
        },
      },
    },
  ],
});
console.log("Told:", await runner.finalContent());

// An answer of a given form.
const Toll = z.object({ road: z.string(), euros: z.number() });
const formed = await client.chat.completions.parse({
  model,
  messages: question,
  response_format: zodResponseFormat(Toll, "toll"),
});
console.log("Schema:", JSON.stringify(formed.choices[0].message.parsed));

// An image to look at.
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const parts = [
  { type: "text", text: "What is to be seen?" },
  { type: "image_url", image_url: { url: `data:image/png;base64,${pixel}` } },
];
const seen = await client.chat.completions.create({ model, messages: [{ role: "user", content: parts }] });
console.log("Image:", seen.choices[0].message.content);

// The Responses API. What is not to be kept at the provider can be answered by any of them.
const response = await client.responses.create({ model, input: "What is a tollgate?", store: false });
console.log("Response:", response.output_text);

// A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
async function refuse(why, expected, apiKey, model) {
  try {
    await client.withOptions({ apiKey }).chat.completions.create({ model, messages: question });
  } catch (error) {
    if (!(error instanceof expected)) throw error;
    console.log(`${why}: ${error.status} ${error.code} ${error.message}`);
  }
}
await refuse("Wrong key", OpenAI.AuthenticationError, "tg-wrong", model);
await refuse("Unknown model", OpenAI.NotFoundError, process.env.TOLLGATE_KEY, "a-model-nobody-registered");
if (process.env.TOLLGATE_SPENT_KEY) {
  await refuse("Budget used up", OpenAI.RateLimitError, process.env.TOLLGATE_SPENT_KEY, model);
}
