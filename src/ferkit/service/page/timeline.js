// The expressions of one face over time, stacked; time is chosen with a slider below.

import { colour } from "./view.js";

const plot = document.getElementById("plot");
const scrub = document.getElementById("scrub");

export function clock(seconds) {
  const whole = Math.max(0, seconds);
  return `${Math.floor(whole / 60)}:${String(Math.floor(whole % 60)).padStart(2, "0")}`;
}

/** Frames with their time, in order; drawn at most once per animation frame. */
export class Timeline {
  constructor() {
    this.frames = [];
    this.labels = [];
    this.track = null;
    this.length = 0; // seconds, where known
    this.begin = 0;
    this.now = 0;
    this.waiting = false;
    this.onSeek = () => {};
    scrub.oninput = () => this.onSeek(this.begin + Number(scrub.value) * this.span);
  }

  get end() {
    const last = this.frames.at(-1);
    return Math.max(this.length, last ? last.time + (last.duration || 0) : 0);
  }

  get span() {
    return Math.max(0.001, this.end - this.begin);
  }

  /** Return the frame that is shown at a time, or null. */
  at(time) {
    let low = 0;
    let high = this.frames.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.frames[middle].time <= time + 1e-3) low = middle + 1;
      else high = middle;
    }
    return low ? this.frames[low - 1] : null;
  }

  moveTo(time) {
    this.now = time;
    scrub.value = String(Math.min(1, Math.max(0, (time - this.begin) / this.span)));
    scrub.setAttribute("aria-valuetext", `${clock(time - this.begin)} of ${clock(this.span)}`);
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  paint() {
    document.getElementById("t-begin").textContent = clock(0);
    document.getElementById("t-now").textContent = clock(this.now - this.begin);
    document.getElementById("t-end").textContent = clock(this.span);
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(plot.clientWidth * ratio);
    const height = Math.round(plot.clientHeight * ratio);
    if (plot.width !== width || plot.height !== height) [plot.width, plot.height] = [width, height];
    const context = plot.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    context.fillStyle = style.getPropertyValue("--stage");
    context.fillRect(0, 0, width, height);
    const columns = new Array(width);
    for (const frame of this.frames) {
      const face = frame.faces.find((one) => one.track === this.track);
      if (!face) continue;
      const from = Math.max(0, Math.floor(((frame.time - this.begin) / this.span) * width));
      const to = Math.ceil(((frame.time + Math.min(frame.duration || 0.05, 3) - this.begin) / this.span) * width);
      for (let x = from; x < Math.min(to, width); x += 1) columns[x] = face.probabilities;
    }
    for (let x = 0; x < width; x += 1) {
      if (!columns[x]) continue;
      let y = height;
      for (const label of this.labels) {
        const part = (columns[x][label] || 0) * height;
        context.fillStyle = colour(label);
        context.fillRect(x, y - part, 1, part + 0.5);
        y -= part;
      }
    }
    const x = ((this.now - this.begin) / this.span) * width;
    context.fillStyle = style.getPropertyValue("--ink");
    context.fillRect(Math.min(width - 2 * ratio, Math.max(0, x - ratio)), 0, 2 * ratio, height);
  }
}
