// A timer of a worker: where nobody looks at a page, its own ones ring once a second.

let timer;

onmessage = ({ data: milliseconds }) => {
  clearTimeout(timer);
  timer = setTimeout(() => postMessage("now"), milliseconds);
};
