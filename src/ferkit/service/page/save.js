// Downloads: JSON, CSV, PNG.

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function saveJson(content, name) {
  save(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), name);
}

const cell = (value) => {
  const text = value == null ? "" : String(value);
  // A name that begins like a formula stays text in a spreadsheet.
  const safe = /^[=+\-@\t]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

const MARKS = ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"];
const QUALITY = ["size", "sharpness", "brightness", "yaw", "pitch", "roll", "outside", "flags"];

/** Columns of a face, and its cells, as of `ferkit predict --format csv`. */
const columns = (labels) => [
  ...["left", "top", "right", "bottom", "score"],
  ...MARKS.flatMap((mark) => [`${mark}_x`, `${mark}_y`]),
  ...QUALITY, "label", "confidence",
  ...labels.map((label) => `p_${label}`),
];

const cells = (face, labels) => [
  ...face.box, face.score,
  ...MARKS.flatMap((mark) => face.landmarks?.[mark] ?? [null, null]),
  ...QUALITY.map((key) => (key === "flags" ? face.quality?.flags.join(";") : face.quality?.[key])),
  face.label, face.confidence,
  ...labels.map((label) => face.probabilities[label]),
];

/** Rows of photos or of frames, with the columns of the command line's CSV: a row per face, and one without a face. */
export function saveCsv(results, labels, name) {
  const frames = results.some((result) => "time" in result);
  const face = columns(labels);
  const head = frames
    ? ["frame", "time", "duration", "faces", "track", ...face.slice(0, 5), "detected", ...face.slice(5), "raw_label", "raw_confidence"]
    : ["source", "faces", "face", ...face];
  const rows = [head];
  for (const result of results) {
    if (!result.faces) continue;
    const count = result.faces.length;
    const which = frames ? [result.index, result.time, result.duration, count] : [result.source, count];
    if (!count) rows.push([...which, ...Array(head.length - which.length)]);
    result.faces.forEach((one, number) => {
      const own = cells(one, labels);
      rows.push(frames
        ? [...which, one.track, ...own.slice(0, 5), Number(one.detected), ...own.slice(5), one.raw.label, one.raw.confidence]
        : [...which, number, ...own]);
    });
  }
  save(new Blob([rows.map((row) => `${Array.from(row, cell).join(",")}\n`).join("")], { type: "text/csv" }), name);
}
