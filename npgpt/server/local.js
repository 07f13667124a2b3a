// ---------------------------------------------------------------------- asking the model in this page
// The model and libnpgpt as WebAssembly stand behind this script, in base64; a worker computes, so that the page lives
// meanwhile. npgpt.generate(...) is for scripts: the ids that libnpgpt draws anywhere for the same seed.

Object.assign(WORDS.en, {
  opening: "Opening the model …", cut: "This file is incomplete. Copy it or download it once more.",
  old: "This browser cannot run the model: it lacks WebAssembly with SIMD. Current versions of Firefox, Chrome, Edge and Safari have it.",
  memory: "There is not enough memory for this model. Closing other pages and programs may help.",
  long: "The message is longer than the model's context.",
});
Object.assign(WORDS.pt, {
  opening: "Abrindo o modelo …", cut: "Este arquivo está incompleto. Copie ou baixe-o de novo.",
  old: "Este navegador não consegue executar o modelo: falta WebAssembly com SIMD. Versões atuais do Firefox, do Chrome, do Edge e do Safari têm isso.",
  memory: "Não há memória suficiente para este modelo. Fechar outras páginas e programas pode ajudar.",
  long: "A mensagem é mais longa que o contexto do modelo.",
});
$("notice").remove(); // it is for those whose browser runs no script, or not this far
const DATA = JSON.parse($("data").textContent); // what npgpt.export says of the model
const NO_MEMORY = 5; // of npgpt_status
const explain = null; // a page that looks into the model is not in here
const told = (error) => (WORDS.en[error.word] ? t(error.word) : error.message);
const fault = (word) => Object.assign(new Error(WORDS.en[word]), { word });

// ---- the worker: its source is this function's, so it knows nothing of the page

function compute() {
  const OUT = 64, CONTEXT_AT = 12, V_AT = 16; // bytes; where npgpt_config has block_size and vocab_size
  const names = [], held = [], stopped = new Set(), pause = new MessageChannel(), utf8 = new TextEncoder();
  let lib, error, out, how, file, written = 0, size, special, model, session, context, V, busy = Promise.resolve();
  const bytes = () => new Uint8Array(lib.memory.buffer), view = () => new DataView(lib.memory.buffer);
  const rest = () => new Promise((done) => { pause.port1.onmessage = done; pause.port2.postMessage(0); });

  function take(length) {
    const place = lib.malloc(length) >>> 0;
    if (!place) throw Object.assign(new Error("not enough memory"), { status: 5 });
    return place;
  }
  function check(status) {
    if (!status) return;
    const line = bytes().slice(error, error + 256);
    throw Object.assign(new Error(new TextDecoder().decode(line.subarray(0, line.indexOf(0)))), { status });
  }
  async function begin({ wasm, length, names }) {
    const none = { env: { emscripten_notify_memory_growth() {} }, wasi_snapshot_preview1: { proc_exit(code) { throw new Error(`exit ${code}`); } } };
    lib = (await WebAssembly.instantiate(wasm, none)).instance.exports;
    lib._initialize();
    [error, out, how, size, special] = [take(256), take(OUT), take(OUT), length, names];
    file = (take(length + 63) + 63) & -64;
    file >>>= 0;
  }
  function fill(part) {
    bytes().set(part, file + written);
    written += part.length;
    if (written < size) return;
    check(lib.npgpt_open_memory(file, size, out, error));
    model = view().getUint32(out, true);
    check(lib.npgpt_session_new(model, 0, out, error));
    session = view().getUint32(out, true);
    const config = take(128);
    lib.npgpt_get_config(model, config);
    [context, V] = [view().getInt32(config + CONTEXT_AT, true), view().getInt32(config + V_AT, true)];
    postMessage({ open: true });
  }
  function encode(text) {
    const letters = utf8.encode(text), room = letters.length + 1, place = take(room), ids = take(4 * room);
    bytes().set(letters, place);
    check(lib.npgpt_encode(model, place, letters.length, ids, room, out, error));
    const found = [...new Int32Array(lib.memory.buffer, ids, view().getUint32(out, true))];
    lib.free(place), lib.free(ids);
    return found;
  }
  function name(id) { // {bytes, name}
    if (names[id]) return names[id];
    const at = lib.npgpt_token_bytes(model, id, out) >>> 0, letters = bytes().slice(at, at + (at ? view().getUint32(out, true) : 0));
    let text;
    try { text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(letters); }
    catch { text = "bytes:" + [...letters].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join(""); }
    return (names[id] = { bytes: special.includes(id) ? [] : [...letters], name: text }); // a special token has a name, not a text
  }
  function feed(ids) {
    const place = take(4 * ids.length);
    new Int32Array(lib.memory.buffer, place, ids.length).set(ids);
    try { check(lib.npgpt_feed(session, place, ids.length, 0, error)); } finally { lib.free(place); }
    held.push(...ids);
  }
  function read(prompt) { // what it shares with the text before is not read again
    let same = 0;
    while (same < Math.min(held.length, prompt.length - 1) && held[same] === prompt[same]) same++;
    if (same && lib.npgpt_session_length(session) === held.length) check(lib.npgpt_session_rewind(session, same, error));
    else { same = 0; lib.npgpt_session_reset(session); }
    held.length = same;
    feed(prompt.slice(same));
  }
  function likely(id, count) { // {logprob, top} of the model's own probabilities
    const z = new Float32Array(lib.memory.buffer, lib.npgpt_logits(session) >>> 0, V), best = [];
    let most = -Infinity, sum = 0;
    for (let i = 0; i < V; i++) if (z[i] > most) most = z[i];
    for (let i = 0; i < V; i++) {
      sum += Math.exp(z[i] - most);
      if (best.length === count && z[i] <= z[best[count - 1]]) continue;
      let at = best.length;
      while (at && z[i] > z[best[at - 1]]) at--;
      best.splice(at, 0, i);
      best.length = Math.min(best.length, count);
    }
    const all = most + Math.log(sum);
    return { logprob: z[id] - all, top: best.map((i) => ({ name: name(i).name, logprob: z[i] - all })) };
  }
  function set(sampling) { // npgpt_sampling
    const to = view(), doubles = [sampling.temperature, sampling.top_p, sampling.min_p, 1];
    doubles.forEach((value, n) => to.setFloat64(how + 8 * n, value, true));
    to.setBigUint64(how + 32, BigInt.asUintN(64, BigInt(sampling.seed)), true);
    to.setInt32(how + 40, sampling.top_k, true);
    to.setInt32(how + 44, -1, true);
    to.setFloat64(how + 48, 0, true);
    to.setFloat64(how + 56, sampling.frequency_penalty, true);
  }
  async function generate({ number, parts, begins, sampling, ends, top }) {
    const ids = parts.flatMap((part) => (typeof part === "string" ? encode(part) : part)), first = lib.npgpt_begin_of_text(model);
    if (begins && first >= 0) ids.unshift(first);
    else if (!ids.length) ids.push(lib.npgpt_end_of_text(model));
    if (!begins && ids.length >= context) return { full: true };
    set(sampling);
    read(ids);
    let tokens = [], told = performance.now();
    for (let n = 0; n < sampling.max_tokens && !stopped.has(number); n++) {
      check(lib.npgpt_sample(session, how, out, error));
      const id = view().getInt32(out, true);
      if (ends.includes(id)) break;
      tokens.push(top ? { id, ...name(id), ...likely(id, top) } : { id, bytes: name(id).bytes });
      feed([id]);
      if (performance.now() - told < 16) continue;
      postMessage({ number, tokens });
      tokens = [];
      await rest(); // in which a stop may come
      told = performance.now();
    }
    postMessage({ number, tokens });
    return {};
  }
  const work = async (job, number) => {
    try {
      postMessage({ number, done: await job() });
    } catch ({ message, status }) {
      held.length = 0;
      postMessage({ number, failed: message, status });
    }
  };
  onmessage = ({ data }) => {
    if (data.stop) return stopped.add(data.stop);
    busy = busy.then(() => (data.wasm ? work(() => begin(data)) : data.part ? work(() => fill(data.part)) : work(() => generate(data), data.number)));
  };
}

// ---- opening

let worker;
const waiting = new Map(); // number of a request: {came, done, failed}
const decode = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
};
const opened = (async () => {
  if (document.readyState === "loading") {
    $("about").textContent = t("opening");
    await new Promise((done) => document.addEventListener("DOMContentLoaded", done));
  }
  let wasm;
  const parts = [...document.querySelectorAll("script.model")], whole = document.querySelector("script.wasm");
  if (parts.length !== DATA.parts.length || parts.some((part, n) => part.textContent.length !== DATA.parts[n])) throw fault("cut");
  if (typeof WebAssembly === "undefined" || !WebAssembly.validate((wasm = decode(whole.textContent)))) throw fault("old");
  worker = new Worker(URL.createObjectURL(new Blob([`"use strict"; (${compute})()`], { type: "text/javascript" })));
  await new Promise((open, refuse) => {
    const end = (error) => {
      refuse(error);
      for (const { failed } of waiting.values()) failed(error);
    };
    worker.onerror = (event) => { event.preventDefault(); end(new Error(event.message)); };
    worker.onmessage = ({ data: { number, open: isOpen, tokens, done, failed, status } }) => {
      const asked = waiting.get(number);
      const error = failed === undefined ? null : status === NO_MEMORY || /memory|grow/i.test(failed) ? fault("memory") : new Error(failed);
      if (isOpen) open();
      if (tokens) asked?.came(tokens);
      if (error) asked ? asked.failed(error) : end(error);
      else if (done) asked?.done(done);
    };
    worker.postMessage({ wasm, length: DATA.size, names: DATA.special });
    for (const part of parts) {
      const bytes = decode(part.textContent);
      part.remove();
      worker.postMessage({ part: bytes }, [bytes.buffer]);
    }
  });
})();

async function learn() {
  try {
    await opened;
  } catch (error) {
    $("all").hidden = true;
    $("about").textContent = "";
    throw error;
  }
  return DATA.about;
}

// ---- asking

const cleaned = (text) => DATA.cleaning.reduce((so_far, [pattern, instead]) => (pattern ? so_far.replace(new RegExp(pattern, "gu"), instead) : so_far.normalize()), text);
const USUAL = { temperature: 0.8, top_p: 1, top_k: 0, min_p: 0, frequency_penalty: 0, max_tokens: 200, seed: 0 };
let count = 0;

async function run(given, came, signal) {
  await opened;
  const number = ++count, stop = () => worker.postMessage({ stop: number });
  signal?.addEventListener("abort", stop);
  try {
    return await new Promise((done, failed) => {
      waiting.set(number, { came: (tokens) => came(tokens, stop), done, failed });
      if (signal?.aborted) stop();
      worker.postMessage({ number, ends: DATA.ends, ...given });
    });
  } finally {
    waiting.delete(number);
    signal?.removeEventListener("abort", stop);
  }
}

// Moves from held to the result the tokens until one of these strings comes; what may be the beginning of one stays held.
function taken(held, stops) {
  const text = held.map(({ bytes }) => String.fromCharCode(...bytes)).join(""), ready = [];
  const found = Math.min(...stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0)), over = found < Infinity;
  let room = over ? found : text.length;
  if (!over) for (const stop of stops) for (let n = 1; n < stop.length; n++) if (text.endsWith(stop.slice(0, n))) room = Math.min(room, text.length - n);
  for (; held.length && held[0].bytes.length <= room; room -= ready.at(-1).bytes.length) ready.push(held.shift());
  if (over && room) ready.push({ ...held[0], bytes: held[0].bytes.slice(0, room) });
  return { ready, over };
}

async function ask(fields, each) { // for {prompt} or {messages}; each({text, tokens}) takes what comes
  const held = [], decoder = new TextDecoder(), stops = DATA.about.ends.map((name) => String.fromCharCode(...new TextEncoder().encode(name)));
  const turn = ({ role, content }) => [DATA.roles[role], cleaned(content), DATA.roles.end];
  const parts = fields.messages ? [...fields.messages.flatMap(turn), DATA.roles.assistant] : [cleaned(fields.prompt)];
  const sampling = { ...USUAL, seed: crypto.getRandomValues(new Uint32Array(1))[0], ...settings() };
  const tell = (tokens) => each({ text: tokens.map(({ bytes }) => decoder.decode(new Uint8Array(bytes), { stream: true })).join(""), tokens });
  let ended = false;
  const done = await run({ parts, begins: !fields.messages, sampling, top: 5 }, (tokens, stop) => {
    if (ended) return;
    held.push(...tokens);
    const { ready, over } = taken(held, stops);
    tell(ready);
    if ((ended = over)) stop();
  }, running.signal);
  if (done.full) throw Object.assign(new Error(WORDS.en.long), { word: "long", code: "context_length_exceeded" });
  if (!ended) tell(held);
  each({ text: decoder.decode(), tokens: [] });
}

window.npgpt = {
  async generate({ prompt = "", ...given } = {}) {
    const ids = [], letters = [], sampling = { ...USUAL, ...given };
    await run({ parts: [cleaned(prompt)], begins: true, sampling, top: 0 }, (tokens) => {
      for (const { id, bytes } of tokens) ids.push(id), letters.push(...bytes);
    });
    return { text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(letters)), ids };
  },
};

