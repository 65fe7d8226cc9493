// Recording of the output canvas into a file.

const KINDS = ["video/mp4;codecs=avc1", "video/mp4", "video/webm;codecs=vp9", "video/webm"];

export function save(blob, name) {
  const anchor = document.createElement("a");
  Object.assign(anchor, { href: URL.createObjectURL(blob), download: name });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
}

export const fileName = (prompt = "") => prompt.replace(/[^\p{L}\p{M}\p{N} _-]+/gu, " ").trim().slice(0, 60) || "picture";

export class Recorder {
  constructor(canvas, button, named) {
    this.canvas = canvas;
    this.button = button;
    this.named = named;
    addEventListener("beforeunload", (event) => this.recorder && event.preventDefault());
  }

  get works() {
    return typeof MediaRecorder !== "undefined" && Boolean(this.kind);
  }

  get kind() {
    return KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
  }

  toggle() {
    if (!this.recorder) this.begin();
    else if (this.recorder.state === "recording") this.recorder.stop();
  }

  // The pictures get another size, which a file cannot; whether one was recorded.
  resized() {
    const records = this.recorder?.state === "recording";
    if (records) this.recorder.stop();
    return records;
  }

  begin() {
    const pieces = [];
    const stream = this.canvas.captureStream();
    this.recorder = new MediaRecorder(stream, { mimeType: this.kind, videoBitsPerSecond: 8_000_000 });
    this.recorder.ondataavailable = ({ data }) => data.size && pieces.push(data);
    this.recorder.onstop = () => {
      for (const track of stream.getTracks()) track.stop();
      const type = this.recorder.mimeType.split(";")[0];
      this.recorder = null;
      clearInterval(this.clock);
      this.print();
      if (pieces.length) save(new Blob(pieces, { type }), `${this.named()}.${type.split("/")[1]}`);
    };
    this.since = performance.now();
    this.recorder.start(1000);
    this.clock = setInterval(() => this.print(), 500);
    this.print();
  }

  print() {
    const seconds = Math.floor((performance.now() - this.since) / 1000);
    this.button.setAttribute("aria-pressed", Boolean(this.recorder));
    this.button.textContent = this.recorder
      ? `Stop ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}` : "Record";
  }
}
