// The stage and the panel: picture, boxes, bars, messages. It knows faces, not where they come from.

const $ = (id) => document.getElementById(id);
const elements = {};
for (const id of ["stage", "empty", "picture", "canvas", "video", "heat", "faces", "badge", "message", "status", "which", "leading", "certainty", "people", "bars", "flags", "crop", "explain"]) elements[id] = $(id);

export const view = {
  palette: {},
  width: 0,
  height: 0,
  mirrored: false,
  faces: [],
  chosen: null, // track, or number of the face where there are no tracks
  onChoose: () => {},
};

export const colour = (label) => view.palette[label] || "#6b7280";
export const percent = (value) => `${Math.round(value * 100)}%`;

function textColour(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const part = parseInt(hex.slice(at, at + 2), 16) / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) ? "#000" : "#fff";
}

export function message(text) {
  elements.message.textContent = text || "";
  elements.message.hidden = !text;
}

export function status(text) {
  if (elements.status.textContent !== text) elements.status.textContent = text;
}

export function badge(text) {
  elements.badge.textContent = text || "";
  elements.badge.hidden = !text;
}

/** Show the picture area with a size; `source` is "canvas" or "video". */
export function showPicture(width, height, source) {
  const changed = view.width !== width || view.height !== height || elements.picture.hidden;
  view.width = width;
  view.height = height;
  elements.empty.hidden = true;
  elements.picture.hidden = false;
  elements.canvas.hidden = source !== "canvas";
  elements.video.hidden = source !== "video";
  if (changed) fit();
}

export function showEmpty() {
  elements.empty.hidden = false;
  elements.picture.hidden = true;
  setFaces([]);
}

/** Fit the picture into the stage. */
export function fit() {
  if (!view.width) return;
  const scale = Math.min(elements.stage.clientWidth / view.width, elements.stage.clientHeight / view.height);
  elements.picture.style.width = `${view.width * scale}px`;
  elements.picture.style.height = `${view.height * scale}px`;
}

export function mirror(on) {
  view.mirrored = on;
  elements.picture.classList.toggle("mirrored", on);
}

export const identity = (face, number) => face.track ?? `n${number}`;

function name(face, number) {
  return face.track == null ? `Face ${number + 1}` : `Face ${face.track}`;
}

/** Draw the boxes and the panel of a list of faces. */
export function setFaces(faces) {
  view.faces = faces;
  const known = faces.some((face, number) => identity(face, number) === view.chosen);
  if (!known && faces.length) view.chosen = identity(faces[0], 0);
  const layer = elements.faces;
  while (layer.children.length > faces.length) layer.lastChild.remove();
  faces.forEach((face, number) => {
    let box = layer.children[number];
    if (!box) {
      box = document.createElement("button");
      box.type = "button";
      box.className = "face";
      box.append(document.createElement("span"));
      box.addEventListener("click", () => choose(box.dataset.who));
      layer.append(box);
    }
    place(box, face, number);
  });
  people(faces);
  panel();
}

function place(box, face, number) {
  let [left, top, right, bottom] = face.box;
  if (view.mirrored) [left, right] = [view.width - right, view.width - left];
  left = Math.max(0, left);
  top = Math.max(0, top);
  right = Math.min(view.width, right);
  bottom = Math.min(view.height, bottom);
  box.style.left = `${(100 * left) / view.width}%`;
  box.style.top = `${(100 * top) / view.height}%`;
  box.style.width = `${(100 * (right - left)) / view.width}%`;
  box.style.height = `${(100 * (bottom - top)) / view.height}%`;
  paint(box, face.label);
  box.classList.toggle("low", top < view.height * 0.08);
  box.classList.toggle("right", left > view.width * 0.72);
  box.classList.toggle("small", right - left < view.width * 0.12);
  box.classList.toggle("tiny", ((right - left) / view.width) * elements.picture.clientWidth < 64);
  const prefix = face.track == null ? "" : `${face.track} · `;
  box.firstChild.textContent = `${prefix}${face.label} ${percent(face.confidence)}`;
  box.setAttribute("aria-label", `${name(face, number)}: ${face.label}, ${percent(face.confidence)}`);
  const who = identity(face, number);
  box.dataset.who = String(who);
  box.setAttribute("aria-pressed", String(who === view.chosen));
}

function paint(element, label) {
  element.style.setProperty("--c", colour(label));
  element.style.setProperty("--t", textColour(colour(label)));
}

function people(faces) {
  elements.people.hidden = faces.length < 2;
  while (elements.people.children.length > faces.length) elements.people.lastChild.remove();
  faces.forEach((face, number) => {
    let button = elements.people.children[number];
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      button.addEventListener("click", () => choose(button.dataset.who));
      elements.people.append(button);
    }
    button.dataset.who = String(identity(face, number));
    button.setAttribute("aria-pressed", String(identity(face, number) === view.chosen));
    paint(button, face.label);
    const text = name(face, number);
    if (button.textContent !== text) button.textContent = text;
  });
}

function choose(who) {
  const at = view.faces.findIndex((face, number) => String(identity(face, number)) === who);
  if (at < 0) return;
  view.chosen = identity(view.faces[at], at);
  setFaces(view.faces);
  view.onChoose();
}

export function chosenFace() {
  const at = view.faces.findIndex((face, number) => identity(face, number) === view.chosen);
  return at < 0 ? null : view.faces[at];
}

/** Make a row of bars for every label. */
export function setLabels(labels) {
  elements.bars.replaceChildren(...labels.map((label) => {
    const row = document.createElement("li");
    row.dataset.label = label;
    const text = document.createElement("span");
    text.textContent = label;
    const track = document.createElement("span");
    track.className = "track";
    track.append(document.createElement("i"));
    const value = document.createElement("b");
    value.textContent = "–";
    row.append(text, track, value);
    paint(row, label);
    return row;
  }));
}

function panel() {
  const face = chosenFace();
  elements.explain.disabled = !face;
  if (!face) {
    for (const row of elements.bars.children) fill(row, null, false);
    elements.flags.textContent = "";
    elements.crop.getContext("2d").clearRect(0, 0, 96, 96);
    return;
  }
  const at = view.faces.indexOf(face);
  elements.which.textContent = `${name(face, at)}${view.faces.length > 1 ? ` of ${view.faces.length}` : ""}`;
  elements.leading.textContent = face.label;
  const ranked = Object.entries(face.probabilities).sort((one, other) => other[1] - one[1]);
  const [best, second] = ranked;
  let certainty = `${percent(face.confidence)}, calibrated`;
  if (face.label === "uncertain") certainty = `uncertain: ${best[0]} ${percent(best[1])}, ${second[0]} ${percent(second[1])}`;
  else if (face.confidence < 0.5) certainty = `not sure: ${percent(face.confidence)}, then ${second[0]} ${percent(second[1])}`;
  elements.certainty.textContent = certainty;
  for (const row of elements.bars.children) fill(row, face.probabilities[row.dataset.label], row.dataset.label === best[0]);
  const flags = face.quality?.flags || [];
  elements.flags.textContent = flags.length ? `Quality: ${flags.join(", ").replaceAll("_", " ")}` : "";
  drawCrop(face);
}

function fill(row, value, best) {
  const share = value ?? 0;
  row.children[1].firstChild.style.transform = `scaleX(${share})`;
  row.children[2].textContent = value == null ? "–" : percent(share);
  row.classList.toggle("best", best);
}

export function noFace(text) {
  elements.which.textContent = "No face";
  elements.leading.textContent = "–";
  elements.certainty.textContent = text;
}

/** The element that has the pixels that are seen. */
export function pixels() {
  return elements.video.hidden ? elements.canvas : elements.video;
}

function drawCrop(face) {
  const source = pixels();
  const size = source === elements.video ? [source.videoWidth, source.videoHeight] : [source.width, source.height];
  if (!size[0]) return;
  const [left, top, right, bottom] = face.box;
  const scale = size[0] / view.width;
  const side = Math.max(right - left, bottom - top) * 1.15;
  const x = ((left + right) / 2 - side / 2) * scale;
  const y = ((top + bottom) / 2 - side / 2) * scale;
  const context = elements.crop.getContext("2d");
  context.setTransform(view.mirrored ? -1 : 1, 0, 0, 1, view.mirrored ? 96 : 0, 0);
  context.clearRect(0, 0, 96, 96);
  context.drawImage(source, x, y, side * scale, side * scale, 0, 0, 96, 96);
}

/** Lay an activation map over the picture; null takes it away. */
export function heat(map) {
  elements.explain.setAttribute("aria-pressed", String(Boolean(map)));
  elements.explain.textContent = map ? "Hide the activation map" : "Show the activation map";
  elements.heat.hidden = !map;
  if (!map) return;
  const scale = elements.picture.clientWidth / view.width;
  const at = map.corners.map(([x, y]) => [(view.mirrored ? view.width - x : x) * scale, y * scale]);
  const [[x0, y0], [x1, y1], , [x3, y3]] = at;
  elements.heat.src = map.png;
  elements.heat.style.transform = `matrix(${x1 - x0}, ${y1 - y0}, ${x3 - x0}, ${y3 - y0}, ${x0}, ${y0})`;
}

/** Return the picture with its boxes as a canvas, for a download. */
export function snapshot() {
  const out = document.createElement("canvas");
  out.width = view.width;
  out.height = view.height;
  const context = out.getContext("2d");
  if (view.mirrored) {
    context.translate(view.width, 0);
    context.scale(-1, 1);
  }
  context.drawImage(pixels(), 0, 0, view.width, view.height);
  context.setTransform(1, 0, 0, 1, 0, 0);
  const line = Math.max(2, Math.round(view.width / 320));
  for (const face of view.faces) {
    let [left, top, right, bottom] = face.box;
    if (view.mirrored) [left, right] = [view.width - right, view.width - left];
    context.strokeStyle = colour(face.label);
    context.lineWidth = line;
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${face.track == null ? "" : `${face.track} · `}${face.label} ${percent(face.confidence)}`;
    const size = Math.max(12, view.width / 50);
    context.font = `600 ${size}px system-ui, sans-serif`;
    const width = context.measureText(text).width + size;
    const y = top > size * 1.6 ? top - size * 1.6 : bottom;
    const x = Math.min(left, view.width - width);
    context.fillStyle = colour(face.label);
    context.fillRect(x, y, width, size * 1.6);
    context.fillStyle = textColour(colour(face.label));
    context.fillText(text, x + size / 2, y + size * 1.15);
  }
  return out;
}
