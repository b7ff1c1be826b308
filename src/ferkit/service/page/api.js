// The HTTP API: requests, errors in words, the API key, and the stream.

const KEY = "ferkit.key";

/** An error with words for people. */
export class Failure extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function askKey() {
  const dialog = document.getElementById("key-dialog");
  const input = document.getElementById("key");
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (input.value) sessionStorage.setItem(KEY, input.value);
      resolve(Boolean(input.value));
    }, { once: true });
  });
}

async function failure(response) {
  let detail = `${response.status} ${response.statusText}`;
  try {
    detail = (await response.json()).detail || detail;
  } catch {
    // a proxy's page: the status has to do
  }
  return new Failure(response.status, detail, Number(response.headers.get("Retry-After")) || 0);
}

/** Send a request; a busy server is asked again, `onBusy` is called with the seconds until then. */
export async function request(path, options = {}, onBusy = () => {}) {
  for (let attempt = 0; ; attempt += 1) {
    const headers = new Headers(options.headers);
    const key = sessionStorage.getItem(KEY);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0, "The server cannot be reached. Is ferkit serve still running?");
    }
    if (response.ok) return response;
    if (response.status === 401 && attempt < 5 && await askKey()) continue;
    const failed = await failure(response);
    if (![429, 503].includes(failed.status) || attempt >= 5) throw failed;
    const seconds = Math.min(failed.retryAfter || 1, 20);
    onBusy(seconds);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

export async function models() {
  return (await request("/v1/models")).json();
}

/** Classify the faces of one picture (a Blob); returns its result. */
export async function predict(blob, name, options, onBusy) {
  const form = new FormData();
  form.append("photo", blob, name);
  const query = new URLSearchParams(options);
  const response = await request(`/v1/predict?${query}`, { method: "POST", body: form }, onBusy);
  return (await response.json())[0];
}

export async function submitClip(file, options, onBusy) {
  const form = new FormData();
  form.append("clip", file, file.name);
  const response = await request(`/v1/videos?${new URLSearchParams(options)}`, { method: "POST", body: form }, onBusy);
  return response.json();
}

/** Open the stream of a webcam. */
export function openStream(options) {
  const protocols = ["ferkit.stream"];
  const key = sessionStorage.getItem(KEY);
  if (key) {
    const text = btoa(String.fromCharCode(...new TextEncoder().encode(key)));
    protocols.push(`ferkit.key.${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`);
  }
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/v1/stream?${new URLSearchParams(options)}`, protocols);
  socket.binaryType = "arraybuffer";
  return socket;
}
