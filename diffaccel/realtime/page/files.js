// Files that are pasted into the page, or dropped on it.

import { dismiss, say } from "./say.js";

// `received` takes files, and tells whether one of them can be shown.
export function takeFiles(received) {
  addEventListener("paste", (event) => {
    if (!areWords(event, event.clipboardData) && received(event.clipboardData.files)) event.preventDefault();
  });
  addEventListener("dragover", (event) => areWords(event, event.dataTransfer) || event.preventDefault());
  addEventListener("drop", (event) => {
    if (areWords(event, event.dataTransfer)) return;
    event.preventDefault();
    if (!received(event.dataTransfer.files)) say("Drop a picture or a video, as a file.", dismiss);
  });
}

// Whether it is text for a field; some programs give a picture beside it.
const areWords = ({ target }, { types }) => types.includes("text/plain") && target.matches?.("input[type=text], input[type=number]");
