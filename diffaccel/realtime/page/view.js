// The picture alone, as large as the window; it comes back by itself after the program was away. A moving picture that
// breaks off says nothing of that, so the program is asked now and then.

const EVERY = 2000;
const picture = document.getElementById("picture");
let shown = false;

picture.onerror = () => (shown = false);

async function look() {
  const answer = await fetch(`/schema${location.search}`).catch(() => null);
  if (answer?.ok && !shown) picture.src = `/mjpeg${location.search}&at=${Date.now()}`;
  shown = Boolean(answer?.ok);
  if (answer?.status === 403) document.title = "Refused: the program was started again, open the address that it printed"; // not on the projector
  setTimeout(look, EVERY);
}

addEventListener("load", look); // the picture never ends, and would keep the page loading
