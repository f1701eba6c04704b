// Raw requests through a graph that `rerankzoo export --with-features` made, in Node, without Python.
//
//     npm install --ignore-scripts onnxruntime-node
//     node rerank.mjs FOLDER < requests.json > slates.json
//
// requests.json holds a list of requests, the answer a list of their items: item_id, index, score.
// The same as graph_client.py; without the demands (exclude, pin, at_most), which stay at "none".

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { blake2b64 } from "./blake2b.mjs";

const MARKERS = { double: NaN, int64: -(1n << 63n), string: "\uffff" };
const FLOAT32_MAX = 3.4028234663852886e38;

function fail(field, row, message) {
  throw new Error(`field '${field}', row ${row}: ${message}`);
}

function listOf(request, name, row, optional = false) {
  if (!(name in request)) fail(name, row, "missing column");
  const values = optional && request[name] === null ? [] : request[name];
  if (!Array.isArray(values)) fail(name, row, `a list is required, got ${JSON.stringify(values)}`);
  return values;
}

function leaf(value, entry, row, place) {
  if (value === null) return MARKERS[entry.type];
  const text = entry.type === "string" || entry.hash !== undefined;
  const number = typeof value === "boolean" ? Number(value) : value;
  if (typeof number !== (text ? "string" : "number")) {
    fail(entry.column, row, `a ${text ? "string" : "number"} is required, got ${JSON.stringify(value)}`);
  }
  if (entry.hash) return blake2b64(value);
  if (text) return value;
  const tooLow = number < (entry.at_least ?? -Infinity);
  if (entry.type === "int64") {
    if (tooLow) fail(entry.column, row, `an integer of at least ${entry.at_least} is required, got ${value}`);
    // JSON.parse has rounded what lies beyond: take such ids as strings, or parse them with a BigInt-aware parser.
    if (!Number.isSafeInteger(number)) fail(entry.column, row, `a safe integer is required, got ${value}`);
    return BigInt(number);
  }
  const bound = entry.greater_than?.[place % entry.greater_than.length];
  const below = tooLow || (bound != null && number <= bound);
  if (!(Math.abs(number) <= FLOAT32_MAX) || below) {
    fail(entry.column, row, `a finite float32 number${below ? " that is large enough" : ""} is required, got ${value}`);
  }
  return number;
}

function column(requests, entry, counts) {
  const [, axis, size] = entry.shape;
  const lists = axis === "candidates" || axis === "history";
  const length = Number.isInteger(axis) ? axis : size ?? 1; // numbers of each value: of a vector, its length
  const width = lists ? Math.max(1, ...counts[axis]) : 1;
  const vector = Number.isInteger(axis) || size !== undefined;
  const leaves = [];
  requests.forEach((request, row) => {
    let values = [request[entry.column]];
    if (lists) {
      values = listOf(request, entry.column, row, axis === "history");
      if (values.length !== counts[axis][row]) {
        fail(entry.column, row, `a list of ${counts[axis][row]} entries is required, got ${values.length}`);
      }
    } else if (!(entry.column in request)) fail(entry.column, row, "missing column");
    for (const value of values) {
      if (value === null && entry.required) fail(entry.column, row, "a number is required, got null");
      const numbers = vector && value !== null ? value : Array(length).fill(value);
      if (vector && (!Array.isArray(numbers) || numbers.length !== length)) {
        fail(entry.column, row, `a vector of length ${length} is required`);
      }
      numbers.forEach((number, place) => leaves.push(leaf(number, entry, row, place)));
    }
    for (let pad = (width - values.length) * length; pad > 0; pad--) leaves.push(MARKERS[entry.type]);
  });
  const data = entry.type === "int64" ? BigInt64Array.from(leaves) : entry.type === "double" ? Float64Array.from(leaves) : leaves;
  const type = entry.type === "double" ? "float64" : entry.type;
  return [type, data, [requests.length, ...(lists ? [width] : []), ...(vector ? [length] : [])]];
}

export class GraphClient {
  constructor(ort, description, session) {
    Object.assign(this, { ort, description, session });
  }

  static async load(ort, folder) {
    const description = JSON.parse(readFileSync(join(folder, "export.json"), "utf8")).features;
    const options = { intraOpNumThreads: 1, graphOptimizationLevel: "extended", executionProviders: ["cpu"] };
    return new GraphClient(ort, description, await ort.InferenceSession.create(join(folder, description.graph), options));
  }

  feeds(requests) {
    const { inputs, item_id: key, slate_size: size } = this.description;
    const counts = { candidates: requests.map((request, row) => listOf(request, key, row).length) };
    requests.forEach((request, row) => {
      if (request[key].length === 0) fail(key, row, "an empty candidate set");
      if (request[key].includes(null)) fail(key, row, "an item id is required, got null");
    });
    const past = inputs.find((entry) => entry.column && entry.shape[1] === "history");
    if (past) counts.history = requests.map((request, row) => listOf(request, past.column, row, true).length);
    const [rows, width] = [requests.length, Math.max(...counts.candidates)];
    const feeds = {};
    for (const entry of inputs) {
      let [type, data, shape] = ["int64", null, [rows]];
      if (entry.column) [type, data, shape] = column(requests, entry, counts);
      else if (entry.name.startsWith("num_")) data = BigInt64Array.from(counts[entry.name.slice(4)], BigInt);
      else if (entry.name === "exclude") [type, data, shape] = ["bool", new Uint8Array(rows * width), [rows, width]];
      else if (entry.name === "pin") [data, shape] = [new BigInt64Array(rows * size).fill(-100n), [rows, size]];
      else data = new BigInt64Array(rows).fill(1n << 40n); // at_most
      feeds[entry.name] = new this.ort.Tensor(type, data, shape);
    }
    return feeds;
  }

  async rerank(requests) {
    const { slates, step_scores: scores } = await this.session.run(this.feeds(requests));
    const size = this.description.slate_size;
    return requests.map((request, row) => {
      const items = [];
      for (let at = row * size; at < (row + 1) * size && slates.data[at] >= 0n; at++) {
        const index = Number(slates.data[at]);
        items.push({ item_id: request[this.description.item_id][index], index, score: scores.data[at] });
      }
      return items;
    });
  }
}

if (import.meta.filename === process.argv[1] || process.argv[1]?.endsWith("rerank.mjs")) {
  const { default: ort } = await import("onnxruntime-node");
  const client = await GraphClient.load(ort, process.argv[2]);
  const requests = JSON.parse(readFileSync(0, "utf8"));
  const answers = [];
  for (let start = 0; start < requests.length; start += 32) {
    answers.push(...(await client.rerank(requests.slice(start, start + 32))));
  }
  process.stdout.write(JSON.stringify(answers));
}
