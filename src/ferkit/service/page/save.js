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

/** Rows of results (photos or frames): one per face, and one for a result without a face. */
export function saveCsv(results, labels, name) {
  const head = ["source", "time", "faces", "track", "left", "top", "right", "bottom", "score", "label", "confidence", ...labels.map((label) => `p_${label}`)];
  const lines = [head.join(",")];
  for (const result of results) {
    if (!result.faces) continue;
    const which = [result.source, result.time, result.faces.length];
    if (!result.faces.length) lines.push([...which, ...head.slice(3).map(() => "")].map(cell).join(","));
    for (const face of result.faces) {
      lines.push([...which, face.track, ...face.box, face.score, face.label, face.confidence, ...labels.map((label) => face.probabilities[label])].map(cell).join(","));
    }
  }
  save(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }), name);
}
