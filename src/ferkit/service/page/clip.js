// A clip: sent as a job; its frames arrive while it runs, and are shown over the local file.

import { request, submitClip } from "./api.js";
import { Timeline } from "./timeline.js";
import { badge, chosenFace, heat, message, noFace, setFaces, showPicture, status, view } from "./view.js";

const video = document.getElementById("video");
const progress = document.getElementById("progress");
const play = document.getElementById("play");
const saveClip = document.getElementById("save-clip");
const POLL = 500;

export class ClipMode {
  constructor(app) {
    this.app = app;
    this.timeline = null;
    this.file = null;
    this.job = null;
    this.run = 0;
  }

  get results() {
    return this.timeline ? this.timeline.frames : [];
  }

  async open(file) {
    this.close();
    this.file = file;
    heat(null);
    message("");
    setFaces([]);
    this.playable = await this.load(file);
    this.app.showControls("clip");
    await this.send();
  }

  load(file) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(file);
    video.srcObject = null;
    video.src = this.url;
    return new Promise((resolve) => {
      video.onloadedmetadata = () => {
        showPicture(video.videoWidth, video.videoHeight, "video");
        resolve(true);
      };
      video.onerror = () => resolve(false);
    });
  }

  async again() {
    if (this.file) await this.send();
  }

  async send() {
    const run = ++this.run;
    await this.forget();
    const timeline = this.timeline = new Timeline();
    timeline.labels = this.app.labels;
    timeline.onSeek = (time) => this.seek(time);
    if (this.playable && Number.isFinite(video.duration)) timeline.length = video.duration;
    saveClip.hidden = true;
    progress.hidden = false;
    progress.removeAttribute("value");
    status(`Sending ${this.file.name} …`);
    const begun = performance.now();
    try {
      this.job = await submitClip(this.file, { taxonomy: this.app.taxonomy }, (seconds) => status(`The server is busy; trying again in ${seconds} s.`));
      await this.follow(run, timeline, begun);
    } catch (error) {
      if (run !== this.run) return;
      progress.hidden = true;
      badge("");
      status("");
      message(error.status === 413 || error.status === 422 ? `${this.file.name} was refused: ${error.message}` : error.message);
    }
  }

  async follow(run, timeline, begun) {
    const path = `/v1/videos/${this.job.id}`;
    let offset = 0;
    let lost = 0;
    document.getElementById("timeline").hidden = false;
    for (;;) {
      if (run !== this.run) return;
      let job;
      let text;
      try {
        job = await (await request(path)).json();
        const answer = await request(`${path}/live?offset=${offset}`);
        offset = Number(answer.headers.get("X-Next-Offset"));
        text = await answer.text();
        if (lost) message("");
        lost = 0;
      } catch (error) {
        if (error.status !== 0 || run !== this.run) throw error;
        lost += 1;
        message("The server is gone; reconnecting. The clip goes on when it is back.");
        await new Promise((resolve) => setTimeout(resolve, Math.min(5000, 500 * lost)));
        continue;
      }
      if (run !== this.run) return;
      if (job.attempts > (this.job.attempts || 0) && this.job.attempts) {
        timeline.frames.length = 0; // run again from the start
        offset = 0;
        this.job = job;
        continue;
      }
      this.job = job;
      for (const line of text.split("\n")) if (line) timeline.frames.push(JSON.parse(line));
      this.update(job, timeline, begun);
      if (["done", "failed", "cancelled"].includes(job.state) && !text) break;
      await new Promise((resolve) => setTimeout(resolve, text ? 100 : POLL));
    }
    this.finish();
  }

  update(job, timeline, begun) {
    if (job.share != null) progress.value = job.share;
    const seconds = (performance.now() - begun) / 1000;
    this.app.figures(null, null, job.frames ? job.frames / seconds : null);
    badge(job.state === "queued" ? "waiting" : job.state === "running" ? "classifying …" : "");
    if (job.state === "running") status(`${job.frames} frames classified.`);
    this.chooseTrack();
    this.show(this.playable ? video.currentTime : timeline.end);
    this.app.downloads(timeline.frames.length > 0, this.playable);
  }

  finish() {
    progress.hidden = true;
    badge("");
    const { job } = this;
    if (job.state === "failed") message(`${this.file.name} was refused: ${job.error}`);
    else if (job.state === "cancelled") status("Stopped.");
    else {
      const people = job.summary.people?.length ?? job.summary.tracks?.length ?? 0;
      const seen = this.timeline.frames.some((frame) => frame.faces.length);
      status(seen ? `Done: ${job.frames} frames, ${people === 1 ? "one face" : `${people} faces`} tracked.` : "Done: no face was found in this clip.");
      if (!seen) noFace("No face was found in this clip.");
      if (job.summary.notes?.length) message(job.summary.notes.join(" "));
      if (job.results.annotated && !sessionStorage.getItem("ferkit.key")) {
        saveClip.href = job.results.annotated;
        saveClip.hidden = false;
      }
    }
    play.textContent = "Play";
  }

  chooseTrack() {
    const { timeline } = this;
    const chosen = chosenFace();
    if (chosen?.track != null) timeline.track = chosen.track;
    else if (timeline.track == null) {
      const first = timeline.frames.find((frame) => frame.faces.some((face) => face.track != null));
      timeline.track = first ? first.faces.find((face) => face.track != null).track : null;
    }
    timeline.draw();
  }

  show(time) {
    const frame = this.timeline?.at(time);
    if (!frame) return;
    if (!this.playable) {
      showPicture(frame.width, frame.height, "canvas");
      const canvas = document.getElementById("canvas");
      [canvas.width, canvas.height] = [frame.width, frame.height];
    }
    const stale = time - frame.time > Math.max(0.5, 2 * frame.duration);
    setFaces(stale ? [] : frame.faces);
    this.app.count(stale ? null : frame.faces.length);
    this.timeline.moveTo(time);
  }

  seek(time) {
    heat(null);
    if (this.playable) {
      video.pause();
      play.textContent = "Play";
      video.currentTime = Math.min(time, Math.max(0, video.duration - 0.01));
      video.onseeked = () => this.show(video.currentTime);
    } else this.show(time);
  }

  toggle() {
    if (!this.playable) return;
    heat(null);
    if (video.paused) {
      video.play();
      play.textContent = "Pause";
      const step = (_, meta) => {
        if (this.app.mode !== "clip") return;
        this.show(meta.mediaTime);
        if (!video.paused) video.requestVideoFrameCallback(step);
      };
      video.requestVideoFrameCallback(step);
      video.onended = () => { play.textContent = "Play"; };
    } else {
      video.pause();
      play.textContent = "Play";
    }
  }

  async stop() {
    if (this.job && !["done", "failed", "cancelled"].includes(this.job.state)) {
      await request(`/v1/videos/${this.job.id}/cancel`, { method: "POST" });
    } else this.app.reset();
  }

  async forget() {
    const { job } = this;
    this.job = null;
    if (job) await request(`/v1/videos/${job.id}`, { method: "DELETE" }).catch(() => {});
  }

  close() {
    this.run += 1;
    video.pause();
    video.removeAttribute("src");
    video.load();
    progress.hidden = true;
    saveClip.hidden = true;
    this.forget();
    this.timeline = null;
    this.file = null;
  }

  async blob() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [view.width, view.height];
    canvas.getContext("2d").drawImage(video, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  }
}
