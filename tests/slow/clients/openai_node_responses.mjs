// What the official Node client sends to /v1/responses: turns in both ways, streams, what is kept.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const how = { model: process.env.MODEL, max_output_tokens: 5 };
const asked = { role: "user", content: "7" };
const first = await client.responses.create({ ...how, input: "7", instructions: "Conta.", metadata: { a: "b" } });
const second = await client.responses.create({ ...how, input: [asked], previous_response_id: first.id });
await client.responses.create({ ...how, input: [asked, ...first.output, asked], store: false });
for await (const _ of await client.responses.create({ ...how, input: "7", stream: true }));
const stream = client.responses.stream({ ...how, input: "7" });
if ((await stream.finalResponse()).output_text === undefined) throw new Error("no text");
await client.responses.retrieve(second.id);
for await (const item of client.responses.inputItems.list(second.id)) if (!item.type) throw new Error("no type");
await client.responses.delete(second.id);
