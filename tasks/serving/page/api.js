// The server behind the page. A request that is aborted stops the work for it.
let token = sessionStorage.getItem("token") || "";

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export const useToken = (given) => {
  token = given;
  sessionStorage.setItem("token", given);
};

const request = async (path, body, signal) => {
  const headers = { accept: "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  if (body) headers["content-type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  throw new Refused(response.status, told.error);
};

export const get = async (path, signal) => (await request(path, null, signal)).json();
export const post = async (path, body, signal) => (await request(path, body, signal)).json();

// Events of a stream, each {kind, data}, as the server sends them.
export async function* events(path, body, signal) {
  const reader = (await request(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [, kind, data] = part.match(/^event: (\w+)\ndata: (.*)$/s) || [];
      if (kind) yield { kind, data: JSON.parse(data) };
    }
  }
}
