// The official Anthropic SDK through Tollgate: only base URL and key are different.
//
//     TOLLGATE_KEY=tg-… node anthropic.mjs
//
// Needs `npm install`. `make run` prints the key.

import Anthropic from "@anthropic-ai/sdk";

const baseURL = process.env.TOLLGATE_URL ?? "http://127.0.0.1:8080";
const client = new Anthropic({ baseURL, apiKey: process.env.TOLLGATE_KEY });
const model = process.env.TOLLGATE_MODEL ?? "demo";
const question = [{ role: "user", content: "What is a tollgate?" }];

const models = [];
for await (const { id } of client.models.list()) models.push(id);
console.log("Models:", models.join(" "));

// A whole answer.
const answer = await client.messages.create({ model, max_tokens: 50, system: "Be brief.", messages: question });
console.log("Answer:", answer.content[0].text);
console.log("Usage:", answer.usage.input_tokens, "in,", answer.usage.output_tokens, "out");

// A stream.
process.stdout.write("Stream: ");
const stream = client.messages.stream({ model, max_tokens: 50, messages: question });
stream.on("text", (text) => process.stdout.write(text));
const { usage } = await stream.finalMessage();
console.log("\nUsage:", usage.input_tokens, "in,", usage.output_tokens, "out");

// A tool, streamed: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
const tools = [
  {
    name: "get_weather",
    description: "The weather in a city.",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];
const messages = [
  { role: "user", content: 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]' },
];
const asking = await client.messages.stream({ model, max_tokens: 50, messages, tools }).finalMessage();
const results = [];
for (const block of asking.content) {
  if (block.type !== "tool_use") continue;
  console.log("Tool:", block.name, JSON.stringify(block.input));
  results.push({ type: "tool_result", tool_use_id: block.id, content: "4 degrees, rain" });
}
messages.push({ role: "assistant", content: asking.content }, { role: "user", content: results });
const told = await client.messages.create({ model, max_tokens: 50, messages, tools });
console.log("Told:", told.content[0].text);

// An answer of a given form.
const schema = {
  type: "object",
  properties: { road: { type: "string" }, euros: { type: "number" } },
  required: ["road", "euros"],
  additionalProperties: false,
};
const formed = await client.messages.create({
  model,
  max_tokens: 50,
  messages: question,
  output_config: { format: { type: "json_schema", schema } },
});
console.log("Schema:", formed.content[0].text);

// An image to look at.
const data = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const parts = [
  { type: "image", source: { type: "base64", media_type: "image/png", data } },
  { type: "text", text: "What is to be seen?" },
];
const seen = await client.messages.create({ model, max_tokens: 50, messages: [{ role: "user", content: parts }] });
console.log("Image:", seen.content[0].text);

// A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
async function refuse(why, expected, apiKey, model) {
  try {
    await client.withOptions({ apiKey }).messages.create({ model, max_tokens: 50, messages: question });
  } catch (error) {
    if (!(error instanceof expected)) throw error;
    console.log(`${why}: ${error.status} ${error.error.error.message}`);
  }
}
await refuse("Wrong key", Anthropic.AuthenticationError, "tg-wrong", model);
await refuse("Unknown model", Anthropic.NotFoundError, process.env.TOLLGATE_KEY, "a-model-nobody-registered");
if (process.env.TOLLGATE_SPENT_KEY) {
  await refuse("Budget used up", Anthropic.RateLimitError, process.env.TOLLGATE_SPENT_KEY, model);
}
