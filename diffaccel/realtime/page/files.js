// Files that are pasted into the page, or dropped on it.

import { dismiss, say } from "./say.js";

// `received` takes files, and tells whether one of them can be shown.
export function takeFiles(received) {
  addEventListener("paste", (event) => received(event.clipboardData.files) && event.preventDefault());
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length && !received(event.dataTransfer.files)) say("Drop a picture or a video.", dismiss);
  });
}
