// Video over WebRTC, both ways: frames as a track of the canvas that would be sent, pictures as a track that comes back.

const PATIENCE = 10000; // milliseconds until it has to be connected

export class Rtc {
  // `shown` is called with the video element for each picture; `lost` with words, where it does not get through.
  constructor(canvas, address, shown, lost) {
    Object.assign(this, { canvas, address, shown, lost });
    this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
  }

  get connected() {
    return this.peer?.connectionState === "connected";
  }

  async open() {
    this.close();
    const peer = (this.peer = new RTCPeerConnection());
    const [track] = this.canvas.captureStream().getVideoTracks();
    peer.addTrack(track);
    peer.ontrack = ({ track: pictures }) => this.play(new MediaStream([pictures]));
    peer.onconnectionstatechange = () => peer.connectionState === "failed" && this.fail(peer, "the connection failed");
    this.timer = setTimeout(() => this.connected || this.fail(peer, "nothing gets through"), PATIENCE);
    try {
      await peer.setLocalDescription();
      await gathered(peer);
      const body = JSON.stringify({ type: "offer", sdp: peer.localDescription.sdp });
      const answer = await fetch(this.address, { method: "POST", headers: { "content-type": "application/json" }, body });
      if (!answer.ok) throw new Error((await answer.json()).detail);
      if (peer === this.peer) await peer.setRemoteDescription(await answer.json());
    } catch (error) {
      this.fail(peer, error.message);
    }
  }

  async play(stream) {
    this.video.srcObject = stream;
    const next = () => {
      if (this.video.srcObject !== stream) return;
      this.shown(this.video);
      this.video.requestVideoFrameCallback(next);
    };
    this.video.requestVideoFrameCallback(next);
    await this.video.play().catch(() => {});
  }

  fail(peer, why) {
    if (peer !== this.peer) return;
    this.close();
    this.lost(why);
  }

  close() {
    clearTimeout(this.timer);
    this.peer?.close();
    this.peer = null;
    this.video.srcObject = null;
  }
}

function gathered(peer) {
  if (peer.iceGatheringState === "complete") return null;
  return new Promise((done) => peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && done()));
}
