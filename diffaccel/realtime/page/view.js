// The picture alone, as large as the window; it comes back by itself after the program was away.

const AGAIN = 2000;
const picture = document.getElementById("picture");

picture.onerror = () => setTimeout(show, AGAIN);

function show() {
  picture.src = `/mjpeg${location.search}&at=${Date.now()}`;
}

addEventListener("load", show); // the picture never ends, and would keep the page loading
