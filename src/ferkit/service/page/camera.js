// The webcam: frames go to the server as JPEG, results come back; at most two frames are under way.

import { openStream, request } from "./api.js";
import { Timeline } from "./timeline.js";
import { badge, chosenFace, heat, message, mirror, noFace, setFaces, showPicture, status, view } from "./view.js";

const video = document.getElementById("video");
const canvas = document.getElementById("canvas");
const play = document.getElementById("play");
const device = document.getElementById("device");
const mirrorBox = document.getElementById("mirror");
const LONGEST = 640; // pixels of the longer side that is sent
const UNDER_WAY = 2;
const KEPT_SECONDS = 60;
const KEPT_FRAMES = 900;

const REFUSALS = {
  NotAllowedError: "The browser refused the camera. Allow it in the address bar, then start again.",
  NotFoundError: "No camera was found. Plug one in, then start again.",
  OverconstrainedError: "This camera is not available any more. Choose another one.",
  NotReadableError: "The camera is used by another program. Close that program, then start again.",
  AbortError: "The camera stopped. Start it again.",
};

export class Camera {
  constructor(app) {
    this.app = app;
    this.media = null;
    this.socket = null;
    this.running = false;
    this.paused = false;
    mirrorBox.addEventListener("change", () => this.applyMirror());
    device.addEventListener("change", () => this.start(device.value));
  }

  get results() {
    return this.timeline ? this.timeline.frames.map(({ jpeg, ...frame }) => frame) : [];
  }

  async start(deviceId) {
    this.stop();
    heat(null);
    message("");
    if (!navigator.mediaDevices?.getUserMedia) {
      message("The browser offers the camera only over HTTPS or on localhost. Open this page at one of them.");
      return;
    }
    status("Starting the camera …");
    try {
      this.media = await navigator.mediaDevices.getUserMedia({
        audio: false,
        video: { width: { ideal: 640 }, height: { ideal: 480 }, ...(deviceId ? { deviceId: { exact: deviceId } } : {}) },
      });
    } catch (error) {
      status("");
      message(REFUSALS[error.name] || `The camera cannot be used: ${error.message}`);
      return;
    }
    if (this.app.mode !== "camera") {
      this.media.getTracks().forEach((track) => track.stop());
      return;
    }
    this.media.getVideoTracks()[0].addEventListener("ended", () => {
      if (this.running) {
        this.stop();
        message("The camera stopped. Plug it in again, then start again.");
      }
    });
    video.removeAttribute("src");
    video.srcObject = this.media;
    await video.play();
    await this.devices();
    this.running = true;
    this.paused = false;
    play.textContent = "Pause";
    this.timeline = new Timeline();
    this.timeline.labels = this.app.labels;
    this.timeline.onSeek = (time) => this.seek(time);
    this.origin = performance.now();
    showPicture(video.videoWidth, video.videoHeight, "video");
    this.app.showControls("camera");
    document.getElementById("timeline").hidden = false;
    this.applyMirror();
    this.connect(0);
  }

  async devices() {
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
    const used = this.media.getVideoTracks()[0].getSettings().deviceId;
    device.replaceChildren(...cameras.map((camera, number) => {
      const option = document.createElement("option");
      option.value = camera.deviceId;
      option.textContent = camera.label || `Camera ${number + 1}`;
      option.selected = camera.deviceId === used;
      return option;
    }));
    document.getElementById("device-label").hidden = cameras.length < 2;
  }

  again() {
    if (this.running) {
      this.timeline.frames.length = 0;
      this.timeline.labels = this.app.labels;
      this.connect(0);
    }
  }

  connect(attempt) {
    this.disconnect();
    const socket = this.socket = openStream({ taxonomy: this.app.taxonomy });
    this.sent = new Map();
    this.next = 0;
    this.arrivals = [];
    socket.onopen = () => {
      status("Connected.");
      this.loop(socket);
    };
    socket.onmessage = (event) => {
      attempt = 0;
      if (this.socket === socket) this.receive(JSON.parse(event.data));
    };
    socket.onclose = async (event) => {
      if (this.socket !== socket || !this.running) return;
      setFaces([]);
      if (event.code === 1008) {
        message(`The server refused the stream: ${event.reason}`);
        this.stop();
        return;
      }
      const seconds = Math.min(5, 0.5 * 2 ** attempt);
      message(event.code === 1013
        ? `The server is busy: ${event.reason}. Trying again in ${seconds} s.`
        : `The server is gone; trying again in ${seconds} s.`);
      badge("offline");
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      if (this.socket !== socket || !this.running) return;
      // Asks for the API key, if that is what is missing.
      await request("/v1/models").catch(() => {});
      if (this.socket === socket && this.running) this.connect(attempt + 1);
    };
  }

  /** Send a frame whenever the camera has a new one and fewer than two are under way. */
  loop(socket) {
    const out = this.out ||= document.createElement("canvas");
    const context = out.getContext("2d", { alpha: false });
    let encoding = false;
    const step = () => {
      if (this.socket !== socket || socket.readyState !== WebSocket.OPEN) return;
      this.schedule(step);
      if (encoding || this.paused || this.sent.size >= UNDER_WAY || !video.videoWidth) return;
      const scale = Math.min(1, LONGEST / Math.max(video.videoWidth, video.videoHeight));
      out.width = Math.round(video.videoWidth * scale);
      out.height = Math.round(video.videoHeight * scale);
      context.drawImage(video, 0, 0, out.width, out.height);
      const taken = performance.now();
      encoding = true;
      out.toBlob(async (jpeg) => {
        encoding = false;
        if (!jpeg || this.socket !== socket || socket.readyState !== WebSocket.OPEN) return;
        this.sent.set(this.next, { taken, jpeg });
        this.next += 1;
        socket.send(await jpeg.arrayBuffer());
      }, "image/jpeg", 0.85);
    };
    this.schedule(step);
  }

  schedule(step) {
    if (video.requestVideoFrameCallback && !document.hidden) video.requestVideoFrameCallback(step);
    else setTimeout(step, 100);
  }

  receive(result) {
    const sent = this.sent.get(result.index);
    for (const index of this.sent.keys()) if (index <= result.index) this.sent.delete(index);
    if (result.error) {
      status(result.busy ? "The server is busy; frames wait." : result.error);
      return;
    }
    const now = performance.now();
    this.arrivals = [...this.arrivals.filter((time) => now - time < 2000), now];
    if (document.getElementById("badge").textContent === "offline") {
      badge("");
      message("");
    }
    const time = (sent.taken - this.origin) / 1000;
    const { timeline } = this;
    const previous = timeline.frames.at(-1);
    if (previous) previous.duration = time - previous.time;
    timeline.frames.push({ ...result, time, duration: 0.1, jpeg: sent.jpeg });
    while (timeline.frames.length > KEPT_FRAMES || timeline.frames[0].time < time - KEPT_SECONDS) timeline.frames.shift();
    if (this.paused) return;
    timeline.begin = timeline.frames[0].time;
    this.show(result);
    timeline.moveTo(time);
    const rate = this.arrivals.length > 1 ? (1000 * (this.arrivals.length - 1)) / (now - this.arrivals[0]) : null;
    this.app.figures(result.faces.length, performance.now() - sent.taken, rate);
    this.app.downloads(true, true);
    status(result.faces.length ? "" : "No face in sight.");
  }

  show(result) {
    showPicture(result.width, result.height, this.paused ? "canvas" : "video");
    setFaces(result.faces);
    if (!result.faces.length) noFace("No face is in sight.");
    const chosen = chosenFace();
    if (chosen?.track != null) this.timeline.track = chosen.track;
  }

  async seek(time) {
    if (!this.paused) this.toggle();
    heat(null);
    const frame = this.timeline.at(time) || this.timeline.frames[0];
    if (!frame) return;
    const bitmap = await createImageBitmap(frame.jpeg);
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.show(frame);
    this.timeline.moveTo(frame.time);
    this.shown = frame;
  }

  toggle() {
    if (!this.running) {
      this.start();
      return;
    }
    this.paused = !this.paused;
    play.textContent = this.paused ? "Resume" : "Pause";
    badge(this.paused ? "paused" : "");
    heat(null);
    if (this.paused && this.timeline.frames.length) this.seek(this.timeline.frames.at(-1).time);
  }

  applyMirror() {
    mirror(this.running && mirrorBox.checked);
    setFaces(view.faces);
    heat(null);
  }

  disconnect() {
    const { socket } = this;
    this.socket = null;
    socket?.close(1000);
  }

  stop() {
    this.running = false;
    this.paused = false;
    this.disconnect();
    this.media?.getTracks().forEach((track) => track.stop());
    this.media = null;
    video.srcObject = null;
    mirror(false);
    badge("");
  }

  async blob() {
    if (!this.paused) {
      this.toggle();
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
    return this.shown?.jpeg;
  }
}
