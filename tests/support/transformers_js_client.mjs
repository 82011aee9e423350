// transformers.js in Node: generates from a folder. Reads one JSON request, prints one JSON line with the answers.
//
//     node transformers_js_client.mjs PACKAGES FOLDER        PACKAGES: where `npm install @huggingface/transformers` ran
//     {"batches": [["text", ...], ...], "new_tokens": 64} -> {"answers": [{"tokens": [[...]], "texts": [...]}, ...]}

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, folder] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const library = await import(pathToFileURL(require.resolve("@huggingface/transformers")));
const { AutoModelForSeq2SeqLM, AutoTokenizer, env } = library.default ?? library;
env.allowRemoteModels = false;
env.localModelPath = dirname(folder) + "/";

const request = JSON.parse(readFileSync(0, "utf-8"));
const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const model = await AutoModelForSeq2SeqLM.from_pretrained(basename(folder));
const answers = [];
for (const texts of request.batches) {
  const inputs = tokenizer(texts, { padding: true });
  const output = await model.generate({ ...inputs, max_new_tokens: request.new_tokens });
  answers.push({
    tokens: output.tolist().map((row) => row.map(Number)),
    texts: tokenizer.batch_decode(output, { skip_special_tokens: true }),
  });
}
console.log(JSON.stringify({ version: env.version, answers }));
