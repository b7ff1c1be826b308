// Photos: chosen, dropped or pasted; each is sent once per taxonomy.

import { predict } from "./api.js";
import { badge, heat, message, noFace, setFaces, showPicture, status } from "./view.js";

const canvas = document.getElementById("canvas");
const strip = document.getElementById("strip");

export class Photos {
  constructor(app) {
    this.app = app;
    this.items = [];
    this.current = null;
  }

  get results() {
    return this.items.map((item) => item.result).filter(Boolean);
  }

  /** Add files and classify them, one after the other. */
  async add(files) {
    const added = [...files].map((file) => ({ file, result: null, error: null, bitmap: null, ms: null }));
    this.items.push(...added);
    this.drawStrip();
    if (added.length) await this.show(added[0]);
    for (const item of added) await this.classify(item);
  }

  async again() {
    for (const item of this.items) {
      item.result = null;
      await this.classify(item);
    }
  }

  async classify(item) {
    const taxonomy = this.app.taxonomy;
    status(`Classifying ${item.file.name} …`);
    const begun = performance.now();
    try {
      const options = { taxonomy, ...(item.bitmap === null && item.undecodable ? { annotated: "true" } : {}) };
      item.result = await predict(item.file, item.file.name, options, (seconds) => status(`The server is busy; trying again in ${seconds} s.`));
      item.ms = performance.now() - begun;
      item.error = null;
    } catch (error) {
      item.error = error.status === 422 || error.status === 413 ? `${item.file.name} was refused: ${error.message}` : error.message;
    }
    if (this.app.mode !== "photos") return;
    status("");
    this.drawStrip();
    if (this.current === item) await this.show(item);
  }

  async show(item) {
    this.current = item;
    heat(null);
    message(item.error);
    if (!item.bitmap && !item.undecodable) {
      try {
        item.bitmap = await createImageBitmap(item.file);
      } catch {
        item.undecodable = true; // such as TIFF: the server's annotated picture stands in
      }
    }
    if (this.current !== item) return;
    if (item.undecodable && item.result?.annotated) {
      const answer = await fetch(item.result.annotated);
      item.bitmap = await createImageBitmap(await answer.blob());
    }
    const { bitmap, result } = item;
    if (bitmap) {
      [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      showPicture(bitmap.width, bitmap.height, "canvas");
    }
    badge(result || item.error ? "" : "classifying …");
    setFaces(result && bitmap ? result.faces : []);
    if (result && !result.faces.length) {
      noFace("No face was found in this photo.");
      status("No face was found.");
    } else if (result) {
      const faces = result.faces.length === 1 ? "One face" : `${result.faces.length} faces`;
      status(`${faces}: ${result.faces.map((face) => face.label).join(", ")}.`);
    }
    this.app.figures(result ? result.faces.length : null, item.ms, null);
    this.app.downloads(this.results.length > 0, Boolean(bitmap && result));
    this.drawStrip();
  }

  drawStrip() {
    strip.hidden = this.items.length < 2;
    this.items.forEach((item, number) => {
      let button = strip.children[number];
      if (!button) {
        button = document.createElement("button");
        button.type = "button";
        button.append(document.createElement("canvas"), document.createElement("i"));
        button.addEventListener("click", () => this.show(item));
        strip.append(button);
        this.thumb(item, button.firstChild);
      }
      const count = item.error ? "!" : item.result ? String(item.result.faces.length) : "…";
      button.lastChild.textContent = count;
      button.setAttribute("aria-label", `${item.file.name}, ${item.error ? "refused" : item.result ? `${count} faces` : "waiting"}`);
      button.setAttribute("aria-pressed", String(item === this.current));
    });
  }

  async thumb(item, target) {
    [target.width, target.height] = [168, 126];
    try {
      const small = await createImageBitmap(item.file);
      const scale = Math.max(168 / small.width, 126 / small.height);
      const [w, h] = [small.width * scale, small.height * scale];
      target.getContext("2d").drawImage(small, (168 - w) / 2, (126 - h) / 2, w, h);
      small.close();
    } catch {
      // no thumbnail of what the browser cannot decode
    }
  }

  /** Return what is seen as a file, for an activation map. */
  async blob() {
    return this.current?.file;
  }
}
