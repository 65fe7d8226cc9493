// Files that are pasted into the page, or dropped on it.

import { dismiss, say } from "./say.js";

// `received` takes files, and tells whether one of them can be shown.
export function takeFiles(received) {
  addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    const words = types.includes("text/plain") && event.target.matches?.("input[type=text], input[type=number]"); // some programs give a picture beside them
    if (!words && received(files)) event.preventDefault();
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length && !received(event.dataTransfer.files)) say("Drop a picture or a video.", dismiss);
  });
}
