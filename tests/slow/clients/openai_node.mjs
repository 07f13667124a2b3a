// What the official Node client is used for; FILE is a file of examples, sent as a stream.
import fs from "fs";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const model = process.env.MODEL;
const messages = [{ role: "user", content: "7" }];
const reply = await client.chat.completions.create({ model, messages, max_tokens: 5 });
messages.push(reply.choices[0].message, { role: "user", content: "8" });
await client.chat.completions.create({ model, messages, max_tokens: 5 });
await client.chat.completions.stream({ model, messages, max_tokens: 5 }).finalChatCompletion();
await client.embeddings.create({ model, input: ["O sol", "o mar"] });
const file = await client.files.create({ file: fs.createReadStream(process.env.FILE), purpose: "fine-tune" });
for await (const one of client.files.list({ limit: 1 })) await client.files.retrieve(one.id);
await client.fineTuning.jobs.list({ metadata: { who: "me" } });
await client.files.delete(file.id);
