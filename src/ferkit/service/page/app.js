// The page: which source is open, and what the controls do.

import { models, predict } from "./api.js";
import { Camera } from "./camera.js";
import { ClipMode } from "./clip.js";
import { Photos } from "./photos.js";
import { saveCsv, saveJson, save } from "./save.js";
import { badge, chosenFace, fit, heat, message, noFace, setFaces, setLabels, showEmpty, snapshot, status, view } from "./view.js";

const $ = (id) => document.getElementById(id);
const TEXTS = {
  photos: ["Drop or paste photos here", "Choose photos", "JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF"],
  clip: ["Drop a clip here", "Choose a clip", "MP4, MOV, MKV, WebM or AVI"],
  camera: ["Watch expressions live", "Start the webcam", "The browser asks for permission first"],
};

const app = {
  mode: "photos",
  info: null,
  taxonomy: null,
  labels: [],

  showControls(kind) {
    $("controls").hidden = false;
    for (const id of ["mirror-label", "device-label"]) $(id).hidden = kind !== "camera" || (id === "device-label" && $("device").length < 2);
    $("play").textContent = kind === "camera" ? "Pause" : "Play";
  },

  count(faces) {
    $("f-faces").textContent = faces ?? "–";
  },

  figures(faces, latency, rate) {
    if (faces != null) app.count(faces);
    $("f-latency").textContent = latency == null ? "–" : Math.round(latency);
    $("f-rate").textContent = rate == null ? "–" : rate < 10 ? rate.toFixed(1) : Math.round(rate);
  },

  downloads(results, picture) {
    $("save-json").disabled = $("save-csv").disabled = !results;
    $("save-png").disabled = !picture;
  },

  /** Go back to the invitation of the mode. */
  reset() {
    modes[app.mode].close?.();
    camera.stop();
    showEmpty();
    heat(null);
    badge("");
    message("");
    status("");
    noFace("Choose a photo, a clip or the webcam.");
    $("which").textContent = "No face yet";
    for (const id of ["controls", "timeline", "strip"]) $(id).hidden = true;
    app.count(null);
    app.figures(null, null, null);
    app.downloads(false, false);
    const [invite, button, hint] = TEXTS[app.mode];
    $("invite").textContent = invite;
    $("start").textContent = button;
    $("hint").textContent = hint;
  },
};

const photos = new Photos(app);
const clip = new ClipMode(app);
const camera = new Camera(app);
const modes = { photos, clip, camera };

function setMode(mode) {
  if (mode !== app.mode) modes[app.mode].close?.();
  app.mode = mode;
  for (const name of Object.keys(modes)) $(`mode-${name}`).setAttribute("aria-pressed", String(name === mode));
  app.reset();
  if (mode === "photos" && photos.items.length) photos.show(photos.current || photos.items[0]);
  history.replaceState(null, "", mode === "photos" ? location.pathname : `#${mode}`);
}

function start() {
  if (app.mode === "camera") camera.start();
  else $(app.mode === "clip" ? "file-clip" : "file-photos").click();
}

/** Take files from wherever they came: clips are opened, all else is tried as photos. */
function take(files) {
  const list = [...files];
  if (!list.length) return;
  const isClip = (file) => file.type.startsWith("video/") || /\.(mkv|avi|mov|mp4|webm)$/i.test(file.name);
  if (list.length === 1 && isClip(list[0])) {
    if (app.mode !== "clip") setMode("clip");
    clip.open(list[0]);
    return;
  }
  if (app.mode !== "photos") setMode("photos");
  photos.add(list);
}

async function explain() {
  if ($("explain").getAttribute("aria-pressed") === "true") {
    heat(null);
    return;
  }
  const face = chosenFace();
  if (!face) return;
  const blob = await modes[app.mode].blob();
  if (!blob) return;
  status("Computing the activation map …");
  try {
    const result = await predict(blob, "frame", { taxonomy: app.taxonomy, explain: "true" });
    const overlap = (one, other) => {
      const w = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
      const h = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
      return Math.max(0, w) * Math.max(0, h);
    };
    const best = result.faces.sort((a, b) => overlap(b.box, face.box) - overlap(a.box, face.box))[0];
    status("");
    if (!best?.activation_map || !overlap(best.box, face.box)) message("There is no activation map for this face.");
    else heat(best.activation_map);
  } catch (error) {
    status("");
    message(error.message);
  }
}

function setTaxonomy(id) {
  app.taxonomy = id;
  app.labels = app.info.models[0].taxonomies.find((one) => one.id === id).labels;
  setLabels(app.labels);
  setFaces([]);
  heat(null);
  modes[app.mode].again();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

async function main() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  $("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  $("server").textContent = location.host;
  for (const mode of Object.keys(modes)) $(`mode-${mode}`).addEventListener("click", () => setMode(mode));
  $("start").addEventListener("click", start);
  for (const id of ["file-photos", "file-clip"]) {
    $(id).addEventListener("change", (event) => {
      take([...event.target.files]);
      event.target.value = "";
    });
  }
  $("play").addEventListener("click", () => modes[app.mode].toggle?.());
  $("stop").addEventListener("click", () => (app.mode === "clip" ? clip.stop() : app.reset()));
  $("explain").addEventListener("click", explain);
  $("taxonomy").addEventListener("change", (event) => setTaxonomy(event.target.value));
  $("save-json").addEventListener("click", () => saveJson(modes[app.mode].results, `ferkit-${app.mode}.json`));
  $("save-csv").addEventListener("click", () => saveCsv(modes[app.mode].results, app.labels, `ferkit-${app.mode}.csv`));
  $("save-png").addEventListener("click", () => snapshot().toBlob((blob) => save(blob, "ferkit.png"), "image/png"));
  const stage = $("stage");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) stage.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  new ResizeObserver(() => {
    fit();
    heat(null);
  }).observe(stage);
  view.onChoose = () => {
    heat(null);
    if (app.mode === "clip") clip.chooseTrack();
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, button, a, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && !$("controls").hidden) {
      event.preventDefault();
      modes[app.mode].toggle?.();
    }
  });

  for (let attempt = 0; !app.info; attempt += 1) {
    try {
      app.info = await models();
    } catch (error) {
      message(error.message);
      await new Promise((resolve) => setTimeout(resolve, Math.min(5000, 500 * 2 ** attempt)));
    }
  }
  message("");
  const [model] = app.info.models;
  view.palette = app.info.palette;
  $("model").textContent = `ferkit ${app.info.version}, model ${model.name}, detector ${app.info.detector}.`;
  $("taxonomy").replaceChildren(...model.taxonomies.map(({ id, labels }) => {
    const option = document.createElement("option");
    option.value = id;
    option.textContent = `${id} (${labels.length})`;
    option.selected = id === model.default_taxonomy;
    return option;
  }));
  setTaxonomy(model.default_taxonomy);
  const wanted = location.hash.slice(1);
  setMode(wanted in modes ? wanted : "photos");
  document.documentElement.dataset.ready = "true";
  if (wanted === "camera") camera.start();
}

main();
