// Cameras, the screen, pictures and video files; every failure in words that say how to go on.

export class MediaTrouble extends Error {}

const CAMERA = {
  NotFoundError: "No camera was found. Plug one in and try again, or draw instead.",
  NotAllowedError:
    "The browser may not use the camera. Allow it with the camera symbol in the address bar (and in the system's " +
    "privacy settings), then try again.",
  NotReadableError: "The camera is in use by another program. Close that program and try again.",
  OverconstrainedError: "This camera has no picture that fits. Try another one, or draw instead.",
};
const PATIENCE = 5000; // milliseconds until a file that has shown no picture has none
const INSECURE =
  "Browsers lend the camera and the screen only to pages from this machine or over https. Open this page on the machine " +
  "itself, or start diffaccel live with --ssl-certfile and --ssl-keyfile.";

export class Media {
  constructor(video, ended) {
    this.video = video;
    this.ended = ended;
    this.turn = 0; // counts what was chosen: what arrives late, after something else was chosen, is not used
  }

  // A camera by its id, if it is still there; "" for the one that the browser prefers; of so many pixels across, if it can.
  async camera(id = "", across = 0) {
    await this.show(async () => {
      const there = id && (await this.cameras()).some(({ deviceId }) => deviceId === id);
      const which = there ? { deviceId: { exact: id } } : {};
      return navigator.mediaDevices.getUserMedia({ video: { width: { ideal: Math.max(640, across) }, ...which }, audio: false });
    }, CAMERA, "The camera was unplugged or switched off. Plug it in and try again, or draw instead.");
  }

  // The cameras of this machine, which have names once one was allowed.
  async cameras() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter(({ kind, deviceId }) => kind === "videoinput" && deviceId);
  }

  // Whether there is a picture.
  get shows() {
    return Boolean(this.stream || this.url || this.still);
  }

  get settings() {
    return this.stream?.getVideoTracks()[0]?.getSettings() ?? {};
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
    const words = `This browser cannot play ${file.name}. Choose an MP4 (H.264) or WebM file.`;
    this.url = URL.createObjectURL(file);
    Object.assign(this.video, { src: this.url, loop: true });
    await this.play(turn, words);
    await this.firstPicture();
    if (turn !== this.turn || this.video.videoWidth) return;
    this.stop();
    throw new MediaTrouble(words);
  }

  async picture(file) {
    const turn = this.stop();
    const still = await createImageBitmap(file).catch(() => null);
    if (turn !== this.turn) return;
    if (!still) throw new MediaTrouble(`This browser cannot show ${file.name}. Choose a JPEG, PNG or WebP picture.`);
    this.still = still;
  }

  async play(turn, words) {
    try {
      await this.video.play();
    } catch {
      if (turn !== this.turn) return;
      this.stop();
      throw new MediaTrouble(words);
    }
  }

  // Sound alone plays, too, and never shows anything.
  firstPicture() {
    const { video } = this;
    if (video.videoWidth) return null;
    return new Promise((done) => {
      video.addEventListener("resize", done, { once: true });
      video.addEventListener("error", done, { once: true });
      setTimeout(done, video.readyState >= 1 ? 0 : PATIENCE);
    });
  }

  stop() {
    const { stream, url } = this;
    this.stream = this.url = this.still = null;
    for (const track of stream?.getTracks() ?? []) track.stop();
    this.video.pause();
    this.video.srcObject = null;
    this.video.removeAttribute("src");
    if (url) URL.revokeObjectURL(url);
    return ++this.turn;
  }

  // Draws the current picture: its middle, so that it covers the canvas, or all of it ("pad"), or distorted ("stretch");
  // false where there is none yet.
  paint(context, mirrored, fit = "crop") {
    const shown = this.still ?? this.video;
    const [w, h] = this.still ? [shown.width, shown.height] : [shown.videoWidth, shown.videoHeight];
    if (!w || (shown === this.video && shown.readyState < 2)) return false;
    const { width, height } = context.canvas;
    const scale = (fit === "pad" ? Math.min : Math.max)(width / w, height / h);
    const [across, down] = fit === "stretch" ? [width, height] : [w * scale, h * scale];
    context.save();
    if (mirrored) {
      context.translate(width, 0);
      context.scale(-1, 1);
    }
    context.fillStyle = fit === "pad" ? "#000" : "#fff"; // around it, and under what is transparent
    context.fillRect(0, 0, width, height);
    context.drawImage(shown, (width - across) / 2, (height - down) / 2, across, down);
    context.restore();
    return true;
  }
}
