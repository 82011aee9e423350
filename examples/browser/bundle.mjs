// A t5edge bundle on onnxruntime-web: text in, text out. See docs/bundle-format.md.
//
//     const bundle = await Bundle.open("demo/");
//     const [answer] = await bundle.generate([bundle.ids("spell 1984")]);
//     bundle.text(answer);
//
// The decoder is decoder.onnx: its cache grows by concatenation. (onnxruntime-web copies inputs and outputs of its
// WebAssembly heap, so buffers that are written in place have no use here.)

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

const FORMAT_VERSION = 1;
const DEFAULT_NEW_TOKENS = 20;
// Settings that change a greedy answer and do not exist here, with the values that change nothing.
const NEUTRAL = {
  num_beams: 1, do_sample: false, num_return_sequences: 1, repetition_penalty: 1, encoder_repetition_penalty: 1,
  no_repeat_ngram_size: 0, encoder_no_repeat_ngram_size: 0, min_length: 0, min_new_tokens: 0, guidance_scale: 1,
  forced_bos_token_id: null, forced_eos_token_id: null, bad_words_ids: null, suppress_tokens: null,
  begin_suppress_tokens: null, sequence_bias: null, exponential_decay_length_penalty: null, penalty_alpha: null,
  stop_strings: null,
};

ort.env.wasm.numThreads ||= globalThis.crossOriginIsolated ? 0 : 1; // threads need a page that is isolated

export class Bundle {
  // The bundle in a folder of the server, `folder` ending with a slash.
  static async open(folder) {
    const manifest = JSON.parse(new TextDecoder().decode(await fetched(folder + "bundle.json")));
    check(manifest);
    const file = async (name) => intact(name, await fetched(folder + name), manifest.files[name]);
    const [tokenizer, weights, encoder, decoder] = await Promise.all(
      ["tokenizer.json", "weights.safetensors", "encoder.onnx", "decoder.onnx"].map(file),
    );
    const session = (graph, role) =>
      ort.InferenceSession.create(graph, {
        externalData: [{ path: "weights.safetensors", data: weights }],
        extra: manifest.session?.[role] ?? {},
      });
    const pieces = JSON.parse(new TextDecoder().decode(tokenizer));
    return new Bundle(manifest, pieces, await session(encoder, "encoder"), await session(decoder, "decoder"));
  }

  // `pieces`: the content of tokenizer.json; sessions of encoder and decoder.
  constructor(manifest, pieces, encoder, decoder) {
    Object.assign(this, { manifest, encoder, decoder, tokenizer: new Tokenizer(pieces, {}) });
    this.bytes = byteFallback(pieces.model);
    const sizes = manifest.architecture;
    const given = manifest.generation;
    this.pad = given.pad_token_id ?? sizes.pad_token_id;
    this.start = given.decoder_start_token_id ?? sizes.decoder_start_token_id;
    this.eos = [given.eos_token_id ?? sizes.eos_token_id].flat();
    this.maxNewTokens = given.max_new_tokens ?? (given.max_length ? given.max_length - 1 : DEFAULT_NEW_TOKENS);
    this.caches = manifest.ports.decoder.inputs.filter((port) => port.name.includes(".decoder."));
  }

  // The ids of a text, the end token last.
  ids(text) {
    const { ids, tokens } = this.tokenizer.encode(text);
    return ids.flatMap((id, at) => this.bytes(id, tokens[at]));
  }

  // The text of an answer's ids.
  text(ids) {
    return this.tokenizer.decode(ids, { skip_special_tokens: true });
  }

  // Greedy answers to rows of ids: ids behind the start token, the end token included where one was reached.
  async generate(rows, maxNewTokens = this.maxNewTokens) {
    const feeds = await this.encode(rows);
    const answers = rows.map(() => []);
    const ended = rows.map(() => false);
    let newest = rows.map(() => this.start);
    for (let step = 0; step < maxNewTokens && ended.includes(false); step++) {
      const outputs = await this.decoder.run({ ...feeds, input_ids: int64(newest, [rows.length, 1]) });
      newest = this.best(outputs.logits).map((token, row) => (ended[row] ? this.pad : token));
      newest.forEach((token, row) => {
        if (!ended[row]) answers[row].push(token);
        ended[row] ||= this.eos.includes(token);
      });
      for (const { name } of this.caches) feeds[name] = outputs[name.replace("past_key_values", "present")];
    }
    return answers;
  }

  // Pad on the right and run the encoder: mask, cross keys and values, and empty caches, as the decoder takes them.
  async encode(rows) {
    const longest = Math.max(...rows.map((row) => row.length));
    const padded = (row, padding) => [...row, ...Array(longest - row.length).fill(padding)];
    const shape = [rows.length, longest];
    const mask = int64(rows.flatMap((row) => padded(row.map(() => 1), 0)), shape);
    const ids = int64(rows.flatMap((row) => padded(row, this.pad)), shape);
    const outputs = await this.encoder.run({ input_ids: ids, attention_mask: mask });
    const feeds = { encoder_attention_mask: mask };
    for (const [name, value] of Object.entries(outputs))
      if (name.startsWith("present.")) feeds[name.replace("present", "past_key_values")] = value;
    const { num_heads, d_kv } = this.manifest.architecture;
    for (const { name } of this.caches)
      feeds[name] = new ort.Tensor("float32", new Float32Array(0), [rows.length, num_heads, 0, d_kv]);
    return feeds;
  }

  // The first largest of each row's last logits, float32 [rows, 1, vocabulary].
  best({ data, dims: [rows, , size] }) {
    return Array.from({ length: rows }, (_, row) => {
      let best = row * size;
      for (let at = best + 1; at < (row + 1) * size; at++) if (data[at] > data[best]) best = at;
      if (!Number.isFinite(data[best])) throw new Error("the logits are not finite");
      return best - row * size;
    });
  }
}

// What this client does not know it refuses.
function check(manifest) {
  if (manifest.format !== "t5edge-bundle") throw new Error("bundle.json is not t5edge's");
  if (manifest.format_version > FORMAT_VERSION) throw new Error("the bundle has a later format than this page knows");
  if ((manifest.task ?? "generate") !== "generate") throw new Error("the bundle is an encoder alone");
  if (manifest.precision.compute !== "float")
    throw new Error("the bundle computes in 16 bits; export it in fp32, int8, int8-weight or int4-weight for this page");
  for (const { name } of manifest.ports.decoder.inputs)
    if (!["input_ids", "encoder_attention_mask"].includes(name) && !name.startsWith("past_key_values."))
      throw new Error(`the decoder's input ${name} is unknown to this page`);
  for (const [name, neutral] of Object.entries(NEUTRAL)) {
    const value = manifest.generation[name] ?? neutral;
    if (value !== neutral)
      throw new Error(`the bundle generates with ${name} ${JSON.stringify(value)}, which this page does not have`);
  }
}

// Unknown characters as the pieces of their bytes, where a Unigram model has such: tokenizers.js leaves them unknown.
function byteFallback({ type, byte_fallback: fallback, unk_id: unknown, vocab }) {
  if (type !== "Unigram" || !fallback) return (id) => [id];
  const index = new Map(vocab.map(([piece], id) => [piece, id]));
  const piece = (byte) => index.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  return (id, token) =>
    id !== unknown || token === vocab[unknown][0] ? [id] : Array.from(new TextEncoder().encode(token), piece);
}

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

// The bytes of a file, if they are those that the manifest describes. (Hashes need https or localhost.)
async function intact(name, bytes, facts) {
  let same = bytes.length === facts.bytes;
  if (same && globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    same = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === facts.sha256;
  }
  if (!same) throw new Error(`${name} is not what was exported; copy the bundle anew`);
  return bytes;
}

function int64(numbers, dims) {
  return new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);
}
