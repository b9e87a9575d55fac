// Google's official Gen AI SDK through Tollgate: only base URL and key are different.
//
//     TOLLGATE_KEY=tg-… node google-genai.mjs
//
// Needs `npm install`. `make run` prints the key.

import { ApiError, GoogleGenAI } from "@google/genai";

const baseUrl = process.env.TOLLGATE_URL ?? "http://127.0.0.1:8080";
const connect = (apiKey) => new GoogleGenAI({ apiKey, httpOptions: { baseUrl } });
const client = connect(process.env.TOLLGATE_KEY);
const model = process.env.TOLLGATE_MODEL ?? "demo";
const question = "What is a tollgate?";

const models = [];
for await (const { name } of await client.models.list()) models.push(name);
console.log("Models:", models.join(" "));

// A whole answer.
const answer = await client.models.generateContent({
  model,
  contents: question,
  config: { systemInstruction: "Be brief.", maxOutputTokens: 50 },
});
console.log("Answer:", answer.text);

// A stream, with its usage at the end.
process.stdout.write("Stream: ");
let usage;
for await (const chunk of await client.models.generateContentStream({ model, contents: question })) {
  process.stdout.write(chunk.text ?? "");
  usage = chunk.usageMetadata;
}
console.log("\nUsage:", usage.promptTokenCount, "in,", usage.candidatesTokenCount, "out");

// A tool: the model asks for it, we answer, it goes on. (What is in brackets is for the simulator of the demo.)
const parametersJsonSchema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const config = {
  tools: [
    { functionDeclarations: [{ name: "get_weather", description: "The weather in a city.", parametersJsonSchema }] },
  ],
};
const contents = [
  {
    role: "user",
    parts: [{ text: 'How is the weather in Oslo? [[simulate tool=get_weather,args={"city":"Oslo"}]]' }],
  },
];
const asking = await client.models.generateContent({ model, contents, config });
const parts = [];
for (const { id, name, args } of asking.functionCalls ?? []) {
  console.log("Tool:", name, JSON.stringify(args));
  parts.push({ functionResponse: { id, name, response: { output: "4 degrees, rain" } } });
}
contents.push(asking.candidates[0].content, { role: "user", parts });
console.log("Told:", (await client.models.generateContent({ model, contents, config })).text);

// An answer of a given form.
const formed = await client.models.generateContent({
  model,
  contents: question,
  config: {
    responseMimeType: "application/json",
    responseJsonSchema: {
      type: "object",
      properties: { road: { type: "string" }, euros: { type: "number" } },
      required: ["road", "euros"],
    },
  },
});
console.log("Schema:", formed.text);

// An image to look at.
const data = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const seen = await client.models.generateContent({
  model,
  contents: [{ text: "What is to be seen?" }, { inlineData: { mimeType: "image/png", data } }],
});
console.log("Image:", seen.text);

// A wrong key, an unknown model, a budget that is used up: ordinary errors of the SDK.
async function refuse(why, client, model) {
  try {
    await client.models.generateContent({ model, contents: question });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    console.log(`${why}: ${error.status} ${JSON.parse(error.message).error.message}`);
  }
}
await refuse("Wrong key", connect("tg-wrong"), model);
await refuse("Unknown model", client, "a-model-nobody-registered");
if (process.env.TOLLGATE_SPENT_KEY) await refuse("Budget used up", connect(process.env.TOLLGATE_SPENT_KEY), model);
