// The page of examples/browser in headless Chromium. Reads one JSON request, prints one JSON line with the answers.
//
//     node browser_driver.mjs PACKAGES CHROMIUM URL [SCREENSHOT]     PACKAGES: where `npm install puppeteer-core` ran
//     {"batches": [["text", ...], ...], "typed": "text"}
//         -> {"state": "...", "rows": [{"source": [ids], "tokens": [ids], "text": "..."}, ...], "seconds": 1.5,
//             "shown": [answer, tokens in, tokens out], "browser": "..."}

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, executablePath, url, screenshot] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const library = await import(pathToFileURL(require.resolve("puppeteer-core")));
const { batches, typed } = JSON.parse(readFileSync(0, "utf-8"));

const browser = await (library.default ?? library).launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  await page.goto(url);
  await page.waitForFunction(() => !document.querySelector("#state").textContent.startsWith("Loading"));
  const state = await page.$eval("#state", (element) => element.textContent);
  const rows = [];
  const began = performance.now();
  for (const texts of (await page.evaluate(() => "bundle" in globalThis)) ? batches : [])
    rows.push(
      ...(await page.evaluate(async (texts) => {
        const sources = texts.map((text) => bundle.ids(text));
        const answers = await bundle.generate(sources);
        return answers.map((tokens, row) => ({ source: sources[row], tokens, text: bundle.text(tokens) }));
      }, texts)),
    );
  const seconds = (performance.now() - began) / 1000;
  let shown = [];
  if (rows.length) {
    await page.$eval("input", (element) => (element.value = ""));
    await page.type("input", typed);
    await page.click("button");
    await page.waitForFunction(() => document.querySelector("#out").textContent !== "–");
    shown = await page.$$eval("dd", (found) => found.map((element) => element.textContent));
  }
  if (screenshot) await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ state, rows, seconds, shown, browser: await browser.version() }));
} finally {
  await browser.close();
}
