// AI SDK's default way, which is /v1/responses: texts, a turn that knows the one before in both ways, a stream, an object.
import { openai } from "@ai-sdk/openai";
import { generateObject, generateText, jsonSchema, streamText } from "ai";

const model = openai(process.env.MODEL);
const asked = { role: "user", content: "7" };
const how = { model, maxOutputTokens: 5, maxRetries: 0 };
const first = await generateText({ ...how, system: "Conta.", prompt: "7" });
await generateText({ ...how, messages: [asked, ...first.response.messages, asked] });
const previousResponseId = first.providerMetadata.openai.responseId;
await generateText({ ...how, prompt: "8", providerOptions: { openai: { previousResponseId } } });
const stream = streamText({ ...how, prompt: "7", onError: ({ error }) => { throw error; } });
for await (const _ of stream.textStream);
const one = { type: "object", properties: { a: { enum: [1, 2] } }, required: ["a"], additionalProperties: false };
const { object } = await generateObject({ model, schema: jsonSchema(one), prompt: "7", maxRetries: 0 });
if (![1, 2].includes(object.a)) throw new Error(JSON.stringify(object));
