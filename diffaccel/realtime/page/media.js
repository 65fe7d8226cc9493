// Camera, screen and video files; every failure in words that say how to go on.

export class MediaTrouble extends Error {}

const CAMERA = {
  NotFoundError: "No camera was found. Plug one in and try again, or draw instead.",
  NotAllowedError:
    "The browser may not use the camera. Allow it with the camera symbol in the address bar (and in the system's " +
    "privacy settings), then try again.",
  NotReadableError: "The camera is in use by another program. Close that program and try again.",
  OverconstrainedError: "This camera has no picture that fits. Try another one, or draw instead.",
};
const INSECURE =
  "Browsers lend the camera and the screen only to pages from this machine or over https. Open this page on the machine " +
  "itself, or start diffaccel live with --ssl-certfile and --ssl-keyfile.";

export class Media {
  constructor(video, ended) {
    this.video = video;
    this.ended = ended;
    this.turn = 0; // counts what was chosen: what arrives late, after something else was chosen, is not used
  }

  async camera() {
    await this.show(() => navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false }), CAMERA,
      "The camera was unplugged or switched off. Plug it in and try again, or draw instead.");
  }

  async screen() {
    if (window.isSecureContext && !navigator.mediaDevices?.getDisplayMedia) {
      throw new MediaTrouble("This browser cannot share its screen; those of computers can. Try the camera, or draw.");
    }
    await this.show(() => navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: false }),
      { NotAllowedError: "The screen was not shared. Try again and choose a window or a screen.",
        NotFoundError: "There is no screen that could be shared here. Try the camera, or draw." },
      "Sharing the screen has ended.");
  }

  async show(open, words, gone) {
    const turn = this.stop();
    if (!window.isSecureContext || !navigator.mediaDevices) throw new MediaTrouble(INSECURE);
    let stream;
    try {
      stream = await open();
    } catch (error) {
      throw new MediaTrouble(words[error.name] ?? `That did not work: ${error.message || error.name}`);
    }
    if (turn !== this.turn) {
      for (const track of stream.getTracks()) track.stop();
      return;
    }
    stream.getVideoTracks()[0].addEventListener("ended", () => this.stream === stream && this.ended(gone));
    this.stream = stream;
    this.video.srcObject = stream;
    await this.play(turn, "The browser does not show this picture. Try again, or draw instead.");
  }

  async file(file) {
    const turn = this.stop();
    this.url = URL.createObjectURL(file);
    Object.assign(this.video, { src: this.url, loop: true });
    await this.play(turn, `This browser cannot play ${file.name}. Choose an MP4 (H.264) or WebM file.`);
  }

  async play(turn, words) {
    try {
      await this.video.play();
    } catch {
      if (turn === this.turn) throw new MediaTrouble(words);
    }
  }

  stop() {
    const { stream, url } = this;
    this.stream = this.url = null;
    for (const track of stream?.getTracks() ?? []) track.stop();
    this.video.pause();
    this.video.srcObject = null;
    this.video.removeAttribute("src");
    if (url) URL.revokeObjectURL(url);
    return ++this.turn;
  }

  // Draws the middle of the current picture so that it covers the canvas; false where there is none yet.
  paint(context, mirrored) {
    const { videoWidth: w, videoHeight: h } = this.video;
    if (!w || this.video.readyState < 2) return false;
    const { width, height } = context.canvas;
    const scale = Math.max(width / w, height / h);
    context.save();
    if (mirrored) {
      context.translate(width, 0);
      context.scale(-1, 1);
    }
    context.drawImage(this.video, (width - w * scale) / 2, (height - h * scale) / 2, w * scale, h * scale);
    context.restore();
    return true;
  }
}
