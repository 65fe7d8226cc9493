// What others see of this page: its name, its addresses, and the picture on the whole screen.

import { dismiss, say } from "./say.js";

// The page keeps its name while it is open, or has the one of its address: viewers find it under that.
export function ownName(asked) {
  const given = (asked ?? sessionStorage.getItem("diffaccel-session") ?? "").replace(/[^\w-]/g, "").slice(0, 64);
  const name = given || Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(36)).join("");
  sessionStorage.setItem("diffaccel-session", name);
  return name;
}

export class Share {
  constructor(token, session) {
    this.query = `token=${encodeURIComponent(token)}&session=${session}`;
  }

  address(path) {
    return `${location.origin}${path}?${this.query}`;
  }

  async wholeScreen(frame) {
    if (document.fullscreenElement) await document.exitFullscreen();
    else if (!frame.requestFullscreen) location.href = this.address("/view"); // as on telephones that fill it with videos alone
    else {
      await frame.requestFullscreen().catch(() =>
        say("The browser does not give this page the whole screen; “Picture only” opens the picture in a window of its own.", dismiss));
    }
  }

  async copy() {
    const address = this.address("/mjpeg");
    try {
      await navigator.clipboard.writeText(address);
      say("The address of your painted stream is copied; it stays the same while this page is open. In OBS: add a browser source, or a media source, and paste it.", dismiss);
    } catch {
      say(`The address of your painted stream, for OBS: ${address}`, dismiss);
    }
  }
}
