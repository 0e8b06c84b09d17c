// An answer as files, made in the browser.
const rows = (answer) => [
  ...answer.proponents.map((found) => ({ kind: "proponent", ...found })),
  ...answer.opponents.map((found) => ({ kind: "opponent", ...found })),
];

const asked = ({ prompt, completion, contrast }) => ({ prompt, completion, ...(contrast ? { contrast } : {}) });
const lines = (values) => values.map((value) => JSON.stringify(value) + "\n").join("");

export const jsonl = (answer) => lines(rows(answer).map((found) => ({ ...asked(answer), ...found })));

// A spreadsheet runs a cell that begins like a formula; an apostrophe keeps it text.
const cell = (value) => {
  const text = typeof value === "string" ? value.replace(/^(?=[=+\-@\t\r])/, "'") : String(value);
  return `"${text.replaceAll('"', '""')}"`;
};

export const csv = (answer) => {
  const columns = ["method", "kind", "rank", "id", "score", "text"];
  return [columns, ...rows(answer).map((found) => columns.map((name) => found[name]))].map((row) => row.map(cell).join(",") + "\r\n").join("");
};

// The field names of the data released with Chang et al. 2024, which their viewer opens.
export const viewer = (answer) => lines(answer.settings.methods.map((method) => {
  const record = { prompt: answer.prompt, completion: answer.completion, method };
  for (const [kind, found] of [["proponent", answer.proponents], ["opponent", answer.opponents]]) {
    const own = found.filter((one) => one.method === method);
    record[`${kind}s`] = own.map((one) => one.text);
    record[`${kind}_ids`] = own.map((one) => one.id);
    record[`${kind}_scores`] = own.map((one) => one.score);
  }
  return record;
}));

export const save = (name, text, kind) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
