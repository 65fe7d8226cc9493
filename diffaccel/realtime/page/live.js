// The page: a source is painted onto the input canvas, goes to the server, and comes back onto the output canvas.

import { Controls } from "./controls.js";
import { Drawing } from "./draw.js";
import { arrows, select } from "./groups.js";
import { Link } from "./link.js";
import { Media, MediaTrouble } from "./media.js";

const FASTEST = 1000 / 30;
const STILL = 50; // milliseconds after which the input is painted anew although no frame was sent
const HEAD_START = 5; // milliseconds that a frame takes to be encoded and to arrive
const QUALITY = 0.92;
const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token") ?? "";

const input = $("input").getContext("2d");
const output = $("output").getContext("2d");
const small = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const drawing = new Drawing($("input"), $("hint"));
const media = new Media($("video"), (words) => say(words, retry, drawInstead));

let source = "draw";
let link, controls, session, stats = {};
let sentAt = new Map(), shownAt = [], latencies = [], networks = [], lastSent = 0, painted = 0, freeAt = 0, newest = 0, timer = 0;

// What is wrong, in words, and buttons to go on.

function say(words, ...actions) {
  $("message").hidden = false;
  $("message").querySelector("p").textContent = words;
  const buttons = actions.map(([label, work]) => {
    const button = document.createElement("button");
    button.textContent = label;
    button.onclick = work;
    return button;
  });
  $("message").querySelector(".actions").replaceChildren(...buttons);
}

const hush = () => ($("message").hidden = true);
const retry = ["Try again", () => choose(source)];
const drawInstead = ["Draw instead", () => choose("draw")];
const dismiss = ["Dismiss", hush];

function state(kind, words) {
  $("state").className = `state ${kind}`;
  $("state").lastElementChild.textContent = words;
}

// Sources

async function choose(name) {
  source = name;
  select($("sources"), "aria-selected", $("sources").querySelector(`[data-source=${name}]`));
  const draws = name === "draw";
  drawing.enabled = draws;
  $("input").classList.toggle("drawing", draws);
  $("hint").hidden = !draws || drawing.touched;
  $("tools").hidden = $("undo-tools").hidden = !draws;
  $("media-tools").hidden = draws;
  $("mirror-label").hidden = name !== "camera";
  $("choose").hidden = name !== "video";
  $("media-name").textContent = "";
  hush();
  media.stop();
  if (!draws) blank();
  try {
    if (name === "camera") await media.camera();
    if (name === "screen") await media.screen();
    if (name === "video") await playFile();
  } catch (error) {
    if (!(error instanceof MediaTrouble)) throw error;
    if (source === name) say(error.message, name === "video" ? ["Choose a file", () => $("file").click()] : retry, drawInstead);
  }
  pump();
}

function blank() {
  input.fillStyle = getComputedStyle(document.body).getPropertyValue("--well");
  input.fillRect(0, 0, input.canvas.width, input.canvas.height);
}

async function playFile() {
  const file = $("file").files[0];
  if (!file) {
    say("Choose a video file. It stays on this machine, and plays round and round.", ["Choose a file", () => $("file").click()], drawInstead);
    return;
  }
  $("media-name").textContent = file.name;
  await media.file(file);
}

function paintInput() {
  painted = performance.now();
  if (source === "draw") {
    drawing.paint(input);
    return true;
  }
  return media.paint(input, source === "camera" && $("mirror").checked);
}

// What is drawn or filmed is seen at once, also while the network is slow or away.
function preview() {
  if (performance.now() - painted > STILL) paintInput();
  requestAnimationFrame(preview);
}

// Frames out: each so late that it is fresh, and so early that the network need not wait for it. One that still waits
// when the next is due was early: the next one replaces it.

function room({ detail: ms }) {
  freeAt = performance.now() + ms;
  pump();
}

function pump() {
  if (!link?.hasRoom) return;
  clearTimeout(timer);
  const due = Math.max(lastSent + FASTEST, freeAt - HEAD_START);
  const wait = document.hidden ? 0 : due - performance.now(); // timers of hidden tabs are slow
  if (wait > 1) {
    timer = setTimeout(pump, wait);
    return;
  }
  if (!paintInput()) {
    timer = setTimeout(pump, 50);
    return;
  }
  send();
}

function send() {
  lastSent = performance.now();
  small.drawImage(input.canvas, 0, 0, small.canvas.width, small.canvas.height);
  const url = small.canvas.toDataURL("image/jpeg", QUALITY); // at once, where toBlob waits until the page is idle
  const id = link.sendFrame(atob(url.slice(url.indexOf(",") + 1)));
  sentAt.set(id, lastSent);
  pump();
}

// Pictures in

async function show({ id, skipped, networkMs, busyMs, jpeg }) {
  if (!skipped) networks = [...networks.slice(-11), networkMs];
  const picture = await createImageBitmap(jpeg);
  if (id > newest) output.drawImage(picture, 0, 0); // decoding may end out of order
  newest = Math.max(newest, id);
  picture.close();
  link.sendShown(id);
  const now = performance.now();
  shownAt.push(now);
  const at = sentAt.get(id);
  if (at !== undefined) {
    latencies = [...latencies.slice(-29), now - at];
    const detail = { id, skipped, latency: now - at, networkMs, busyMs };
    window.dispatchEvent(new CustomEvent("diffaccel-picture", { detail }));
  }
  for (const old of sentAt.keys()) if (old <= id) sentAt.delete(old);
  $("waiting").hidden = true;
}

function median(values) {
  return values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : NaN;
}

function tick() {
  const now = performance.now();
  shownAt = shownAt.filter((time) => time > now - 2000);
  const fps = shownAt.length > 1 ? (1000 * (shownAt.length - 1)) / (shownAt.at(-1) - shownAt[0]) : 0;
  const latency = median(latencies);
  $("fps").textContent = fps ? fps.toFixed(fps < 10 ? 1 : 0) : "–";
  $("latency").textContent = fps && latency ? latency.toFixed(0) : "–";
  $("network").textContent = networks.length ? median(networks).toFixed(0) : "–";
  $("live-badge").hidden = !fps;
  if (stats.received === undefined) return;
  $("skipped").textContent = stats.skipped;
  $("dropped").textContent = stats.dropped;
  $("failed").textContent = stats.failed + stats.not_finite + stats.rejected;
  $("people").textContent = stats.sessions > 1 ? `${stats.sessions} of ${stats.limit} people here` : "";
}

// The server

function greet({ detail }) {
  session = detail.session;
  newest = 0;
  [sentAt, shownAt, latencies, networks] = [new Map(), [], [], []];
  const { width, height } = detail;
  Object.assign(small.canvas, { width, height });
  Object.assign(output.canvas, { width, height });
  input.canvas.height = Math.round((input.canvas.width * height) / width);
  $("model").textContent = `${detail.model} · ${width} × ${height}`;
  $("model").hidden = false;
  if (controls.mine) link.sendControls(controls.values);
  else controls.show(detail.controls);
  controls.defaults = detail.controls;
  state("on", "Connected");
  if (source === "draw" || media.stream || media.url) hush();
}

function problem({ detail }) {
  if (detail.kind === "busy") {
    state("off", "Full");
    say(detail.message, ["Try again", () => { state("", "Connecting"); link.connect(); }]);
  } else {
    say(detail.message, dismiss);
  }
}

function lost({ detail }) {
  state("off", "Disconnected");
  say(`The connection to the program is lost. Is it still running? Trying again in ${detail.seconds} s.`,
    ["Try now", () => link.connect()]);
}

async function start() {
  drawing.buildTools($("colours"), $("brushes"), $("fill"), $("undo"), $("clear"));
  for (const tab of $("sources").children) tab.onclick = () => choose(tab.dataset.source);
  $("choose").onclick = () => $("file").click();
  $("file").onchange = () => choose("video");
  $("save").onclick = save;
  $("obs").onclick = copyAddress;
  for (const group of [$("sources"), $("colours"), $("brushes")]) arrows(group);
  preview();
  setInterval(tick, 250);
  const answer = await fetch(`/schema?token=${encodeURIComponent(token)}`).catch(() => null);
  if (!answer?.ok) {
    state("off", answer ? "Refused" : "Not reachable");
    say(answer ? await answer.text() : "The program does not answer. Is it still running?", ["Try again", () => location.reload()]);
    return;
  }
  controls = new Controls(await answer.json(), $("prompt-bar"), $("controls"), (values) => {
    controls.mine = true;
    link.sendControls(values);
  });
  $("reset").onclick = () => controls.reset();
  link = new Link(token);
  const events = { hello: greet, problem, lost, room, picture: ({ detail }) => show(detail),
    stats: ({ detail }) => (stats = detail), controls: ({ detail }) => controls.show(detail.values) };
  for (const [name, work] of Object.entries(events)) link.addEventListener(name, work);
  choose("draw");
}

function save() {
  output.canvas.toBlob((blob) => {
    const anchor = document.createElement("a");
    Object.assign(anchor, { href: URL.createObjectURL(blob), download: `${controls.values.prompt.slice(0, 60)}.png` });
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
  });
}

async function copyAddress() {
  const address = `${location.origin}/mjpeg?token=${encodeURIComponent(token)}&session=${session}`;
  try {
    await navigator.clipboard.writeText(address);
    say("The address of your painted stream is copied. In OBS: add a browser source, or a media source, and paste it.", dismiss);
  } catch {
    say(`The address of your painted stream, for OBS: ${address}`, dismiss);
  }
}

start();
