// The WebSocket: at most two frames and two pictures on the way, and a new connection after an old one is lost.

const FRAME = 1, MARK = 2, HEAD = 8, PICTURE_HEAD = 16, SKIPPED = 1;
const QUALITY = 0.92;
const BUSY = 1013, REFUSED = 1008, FORGOTTEN = 4001;
const FULL = 4000; // milliseconds until it is tried again where nobody more had room

export class Link extends EventTarget {
  // Events: "hello", "controls", "stats", "problem", "remark" (detail: the message), "picture" (detail: {id, skipped, networkMs,
  // busyMs, jpeg}), "room" (another frame may be sent; detail: milliseconds until the network is free), "lost" (detail: {seconds}, until the next attempt).
  constructor(token, session) {
    super();
    this.token = token;
    this.session = session;
    this.failures = 0;
    this.connect();
  }

  connect() {
    clearTimeout(this.timer);
    this.forgotten = false;
    this.next = 1;
    this.taken = 0;
    this.window = 0;
    this.socket?.close(); // one that is still on its way would be a second session
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws?token=${encodeURIComponent(this.token)}&session=${encodeURIComponent(this.session)}`);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => socket === this.socket && (typeof data === "string" ? this.told(JSON.parse(data)) : this.got(data));
    socket.onclose = ({ code }) => this.closed(socket, code);
    this.socket = socket;
  }

  told(message) {
    if (message.type === "hello") {
      this.failures = 0;
      this.window = message.window;
      this.largest = message.largest;
    }
    this.emit(message.type, message);
    if (message.type === "hello") this.emit("room", 0);
  }

  got(buffer) {
    const view = new DataView(buffer);
    const id = view.getUint32(4, true);
    if (view.getUint8(0) === MARK) {
      this.taken = Math.max(this.taken, id);
      this.emit("room", view.getFloat32(8, true));
      return;
    }
    this.emit("picture", {
      id,
      skipped: (view.getUint8(1) & SKIPPED) !== 0,
      networkMs: view.getFloat32(8, true),
      busyMs: view.getFloat32(12, true),
      jpeg: new Blob([new Uint8Array(buffer, PICTURE_HEAD)], { type: "image/jpeg" }),
    });
  }

  closed(socket, code) {
    if (socket !== this.socket) return;
    this.window = 0;
    this.forgotten = code === FORGOTTEN; // its place was given to somebody else: it comes back when somebody is here
    if (code === REFUSED || this.forgotten) return;
    if (code === BUSY) {
      this.timer = setTimeout(() => this.connect(), FULL); // perhaps by this page's own last connection, whose end was not seen
      return;
    }
    this.failures += 1;
    const seconds = Math.min(10, 2 ** (this.failures - 1));
    this.timer = setTimeout(() => this.connect(), 1000 * seconds);
    this.emit("lost", { seconds });
  }

  stop() {
    clearTimeout(this.timer);
  }

  get hasRoom() {
    return this.next - 1 - this.taken < this.window && this.socket.readyState === WebSocket.OPEN;
  }

  // Sends what a canvas shows, and tells its number: of less quality where it would be more than the server takes.
  sendFrame(canvas) {
    let jpeg, quality = QUALITY;
    do {
      const url = canvas.toDataURL("image/jpeg", quality); // at once, where toBlob waits until the page is idle
      jpeg = atob(url.slice(url.indexOf(",") + 1));
      quality -= 0.2;
    } while (HEAD + jpeg.length > this.largest && quality > 0);
    const id = this.next++;
    const bytes = new Uint8Array(HEAD + jpeg.length);
    const view = new DataView(bytes.buffer);
    view.setUint8(0, FRAME);
    view.setUint32(4, id, true);
    for (let i = 0; i < jpeg.length; i++) bytes[HEAD + i] = jpeg.charCodeAt(i);
    this.send(bytes);
    return id;
  }

  sendShown(id) {
    const view = new DataView(new ArrayBuffer(HEAD));
    view.setUint8(0, MARK);
    view.setUint32(4, id, true);
    this.send(view.buffer);
  }

  sendControls(values) {
    this.send(JSON.stringify({ type: "controls", values }));
  }

  send(data) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(data);
  }

  emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
