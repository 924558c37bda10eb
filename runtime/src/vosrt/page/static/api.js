// Requests to the server of this page. The token comes with the address, behind the #, and stays in this tab.

const KEY = "vosrt-token";
const fromAddress = location.hash.slice(1);
if (fromAddress) {
  sessionStorage.setItem(KEY, fromAddress);
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem(KEY) ?? "";
const tab = Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0")).join("");
const headers = { "X-Vosrt-Token": token, "X-Vosrt-Tab": tab };

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  let message = `the server answered ${answer.status}`;
  try {
    message = (await answer.json()).error ?? message;
  } catch {
    // not JSON: the number has to do
  }
  throw new Refused(message, answer.status);
}

export async function get(path, signal) {
  return checked(await fetch(path, { headers, signal }));
}

export async function post(path, body = {}) {
  const answer = await fetch(`/api/${path}`, { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) });
  return (await checked(answer)).json();
}

// XMLHttpRequest, because fetch does not say how much of an upload is sent.
export function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/upload?name=${encodeURIComponent(file.name)}`);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onerror = () => reject(new Refused("the upload was interrupted", 0));
    request.onload = () => {
      if (request.status < 300) return resolve();
      let message = `the server answered ${request.status}`;
      try {
        message = JSON.parse(request.responseText).error;
      } catch {
        // as above
      }
      return reject(new Refused(message, request.status));
    };
    request.send(file);
  });
}

// Call onLine with every line of changes without end; connect again where the connection ends.
export async function listen(onLine, onLost) {
  for (;;) {
    try {
      const answer = await get(`/api/events?tab=${tab}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) if (line) onLine(JSON.parse(line));
      }
      throw new Refused("the connection ended", 0);
    } catch (error) {
      onLost(error);
      if (error.status === 401) return;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}
