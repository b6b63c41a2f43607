// Checks a time_tuner plan file, for front ends: types, lengths, order and the references of the rows.
//
//     import { validatePlanFile } from "./validate-plan.mjs";
//     const errors = validatePlanFile(text); // [] for a valid file
//
//     node validate-plan.mjs plan.json       // exit code 0 for a valid file, 1 otherwise
//
// The points on the noise schedule and the numbers of the rows are checked by the Python library alone.

const NEEDED = ["format", "version", "calls", "sampler", "schedule", "t", "alpha", "sigma", "tau"];
const ENTRIES = new Set([...NEEDED, "corrections", "guided", "reuse", "provenance", "rows"]);
const KINDS = new Set(["x", "eps", "x0", "c", "g", "z"]);
const SCHEDULES = new Set(["vp", "ve", "flow"]);
export const MOST_BYTES = 64 * 2 ** 20;

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const areNumbers = (values, count) => Array.isArray(values) && values.length === count && values.every(isNumber);

/** The errors in the text of a plan file, as sentences; an empty list if there are none. */
export function validatePlanFile(text) {
  if (new TextEncoder().encode(text).length > MOST_BYTES) return [`the file has more than ${MOST_BYTES} bytes`];
  let values;
  try {
    values = JSON.parse(text);
  } catch (error) {
    return [`the file is not JSON: ${error.message}`];
  }
  const plans = Array.isArray(values) ? values : [values];
  if (!plans.length) return ["the file holds an empty list"];
  const errors = plans.flatMap((plan, i) => validatePlan(plan).map((e) => (plans.length > 1 ? `plan ${i}: ${e}` : e)));
  const calls = plans.map((plan) => plan?.calls);
  if (!errors.length && new Set(calls).size < calls.length) errors.push("two plans have the same number of calls");
  return errors;
}

/** The errors in one plan, as sentences; an empty list if there are none. */
export function validatePlan(plan) {
  if (!isObject(plan) || plan.format !== "time-tuner plan") return ['"format" must be "time-tuner plan"'];
  if (plan.version !== 1) return [`"version" must be 1, got ${JSON.stringify(plan.version)}`];
  const missing = NEEDED.filter((name) => plan[name] === undefined || plan[name] === null);
  if (missing.length) return missing.map((name) => `"${name}" is missing`);
  const K = plan.calls;
  if (!Number.isInteger(K) || K < 1) return [`"calls" must be a whole number of at least 1, got ${JSON.stringify(K)}`];

  const errors = Object.keys(plan).filter((name) => !ENTRIES.has(name)).map((name) => `"${name}" is unknown`);
  const check = (holds, text) => holds || errors.push(text);
  check(isObject(plan.sampler) && typeof plan.sampler.name === "string", '"sampler" must be an object with a name');
  check(isObject(plan.schedule) && SCHEDULES.has(plan.schedule.name), '"schedule" must be named vp, ve or flow');
  check(plan.provenance === undefined || isObject(plan.provenance), '"provenance" must be an object');
  for (const name of ["t", "alpha", "sigma"]) {
    const fits = areNumbers(plan[name], K + 1) && plan[name].every((value) => value >= 0);
    check(fits, `"${name}" must hold ${K + 1} numbers of at least 0`);
  }
  check(areNumbers(plan.tau, K) && plan.tau.every((value) => value > 0), `"tau" must hold ${K} positive numbers`);
  if (areNumbers(plan.t, K + 1)) {
    check(plan.t.every((value, k) => k === 0 || value <= plan.t[k - 1]), '"t" must not rise');
  }
  if (areNumbers(plan.sigma, K + 1)) check(plan.sigma.slice(0, K).every((s) => s > 0), '"sigma" is 0 before the end');
  for (const name of ["corrections", "reuse"]) {
    const c = plan[name];
    if (c === undefined || c === null) continue;
    const square = Array.isArray(c) && c.length === K && c.every((line) => areNumbers(line, K));
    const lower = square && c.every((line, k) => line.slice(k).every((value) => value === 0));
    check(lower, `"${name}" must be strictly lower triangular, ${K} x ${K}`);
  }
  const flags = plan.guided ?? Array(K).fill(true);
  const areFlags = Array.isArray(flags) && flags.length === K && flags.every((flag) => typeof flag === "boolean");
  check(areFlags, `"guided" must hold ${K} booleans`);
  if (plan.rows !== undefined) {
    const fits = Array.isArray(plan.rows) && plan.rows.length === K;
    check(fits, `"rows" must hold ${K} rows`);
    if (fits) plan.rows.forEach((row, k) => errors.push(...rowErrors(plan.rows, row, k)));
    const left = fits && areFlags && plan.rows.every((row, k) => (row?.guidance === undefined) === flags[k]);
    check(left || !fits || !areFlags, '"guidance" belongs to the rows of calls that "guided" leaves out');
  }
  return errors;
}

/** The errors in row k: a term may use a tensor of this call, or of a call before. */
function rowErrors(rows, row, k) {
  if (!isObject(row) || !Array.isArray(row.next_state)) return [`row ${k} must have "next_state", a list of terms`];
  const errors = [];
  if (![undefined, "x0"].includes(row.predicts)) errors.push(`row ${k}: "predicts" must be "x0" or left out`);
  for (const name of ["guidance", "corrected", "next_state"]) {
    if (row[name] === undefined) continue;
    if (!Array.isArray(row[name])) return [...errors, `row ${k}: "${name}" must be a list of terms`];
    for (const term of row[name]) {
      const fits = Array.isArray(term) && term.length === 3 && KINDS.has(term[0]) && isNumber(term[2]);
      if (!fits || !Number.isInteger(term[1]) || term[1] < 0 || term[1] > k) {
        errors.push(`row ${k}: "${name}" has the term ${JSON.stringify(term)}, not [tensor, calls ago, weight]`);
        continue;
      }
      const source = rows[k - term[1]];
      const absent =
        (term[0] === "g") !== (name === "guidance") ||
        (term[0] === "g" && (term[1] === 0 || source?.guidance !== undefined)) ||
        (term[0] === "c" && (!source?.corrected || (name === "corrected" && term[1] === 0))) ||
        (term[0] === "eps" && source?.predicts === "x0") ||
        (term[0] === "x0" && source?.predicts !== "x0");
      if (absent) errors.push(`row ${k}: "${name}" uses "${term[0]}" of call ${k - term[1]}, which has none`);
    }
  }
  return errors;
}

if (typeof process !== "undefined" && process.argv?.[1] && import.meta.url.endsWith(process.argv[1].split(/[\\/]/).pop())) {
  const { readFile } = await import("node:fs/promises");
  const errors = validatePlanFile(await readFile(process.argv[2], "utf8"));
  for (const error of errors) console.error(`error: ${error}`);
  process.exitCode = errors.length ? 1 : 0;
}
