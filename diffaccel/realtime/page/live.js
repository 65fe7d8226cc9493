// The page: a source is painted onto the input canvas, goes to the server, and comes back onto the output canvas.

import { stayAwake } from "./awake.js";
import { Controls } from "./controls.js";
import { ACROSS, Drawing } from "./draw.js";
import { Dream, blank } from "./dream.js";
import { arrows, select } from "./groups.js";
import { Figures, count } from "./figures.js";
import { takeFiles } from "./files.js";
import { Link } from "./link.js";
import { Media, MediaTrouble } from "./media.js";
import { listen } from "./midi.js";
import { presets } from "./presets.js";
import { Rest } from "./rest.js";
import { Rtc } from "./rtc.js";
import { Recorder, fileName, save } from "./record.js";
import { dismiss, hush, say, state, unsay } from "./say.js";
import { Share, ownName } from "./share.js";

const RATE = 30; // frames a second, where the server holds no other
const STILL = 50; // milliseconds after which the input is painted anew although no frame was sent
const SLOWEST = 5000; // milliseconds that a picture of a clip may take on a slow machine
const LARGEST_SIDE = 2048; // pixels of a frame that the server takes
const HEAD_START = 5; // milliseconds that a frame takes to be encoded and to arrive
const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const token = asked.get("token") ?? "";
const session = ownName(asked.get("session"));
const share = new Share(token, session);

const input = $("input").getContext("2d");
const output = $("output").getContext("2d");
const small = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const drawing = new Drawing($("input"), $("hint"), $("pen"));
const recorder = new Recorder(output.canvas, $("record"), () => fileName(controls?.values.prompt));
const media = new Media($("video"), (words) => say(words, retry, drawInstead));
const dream = new Dream($("dream-note"), $("media-name"), (values) => link?.sendControls(values));

const clock = Object.assign(new Worker("/page/clock.js"), { onmessage: () => pump() });
const rest = new Rest(() => Boolean(recorder.recorder || stats.viewers), wake);
const rtc = new Rtc(small.canvas, share.address("/rtc"), showVideo, withoutRtc);

const figures = new Figures();
let source = "draw";
let link, controls, stats = {}, about = {}, paused = false, size = "", model = ""; // that paints, whatever was asked for
let sentAt = new Map(), lastSent = 0, painted = 0, freeAt = 0, newest = 0, timer = 0, came = false, camera = "", refusal;

const retry = ["Try again", () => choose(source)];
const drawInstead = ["Draw instead", () => choose("draw")];
const chooseFile = ["Choose a file", () => fileOf[source]?.click()];
const fileOf = { video: $("file"), picture: $("picture-file") }, kept = {}; // the last file of each, however it came

// Sources

// `told`: by the server, which need not be told, and what it said stays.
async function choose(name, file, told = false) {
  const shows = source === "draw" ? drawing.shows : dream.shows || media.shows;
  source = name;
  select($("sources"), "aria-selected", $("sources").querySelector(`[data-source=${name}]`));
  const draws = name === "draw";
  drawing.enabled = draws;
  $("input").classList.toggle("drawing", draws);
  $("input").tabIndex = draws ? 0 : -1;
  $("hint").hidden = !draws || drawing.touched;
  $("tools").hidden = $("undo-tools").hidden = !draws;
  $("media-tools").hidden = draws;
  $("mirror-label").hidden = name !== "camera";
  $("cameras").hidden = true;
  $("choose").hidden = !(name in fileOf);
  $("media-name").textContent = "";
  $("another").hidden = name !== "dream";
  drawing.showPen();
  if (!told) hush();
  if (name === "dream") dream.begin(input.canvas, shows, !told);
  else dream.end(!told);
  controls?.dream(name === "dream");
  media.stop();
  if (!draws) blank(input);
  try {
    if (name === "camera") await openCamera();
    if (name === "screen") await media.screen();
    if (name in fileOf) await openFile(name, (kept[name] = file ?? kept[name]));
  } catch (error) {
    if (!(error instanceof MediaTrouble)) throw error;
    if (source === name) say(error.message, name in fileOf ? chooseFile : retry, drawInstead);
  }
  pump();
}

async function openFile(name, file) {
  if (!file) {
    const what = name === "video" ? "a video file. It stays on this machine, and plays round and round" : "a picture, paste one, or drop it here";
    say(`Choose ${what}.`, chooseFile, drawInstead);
    return;
  }
  $("media-name").textContent = file.name;
  await (name === "video" ? media.file(file) : media.picture(file));
}

// A camera that faces its user is mirrored, as in a looking glass; one that faces away is not, until somebody says so.
async function openCamera(id = camera) {
  await media.camera(id, output.canvas.width);
  if (source !== "camera" || !media.stream) return;
  const { facingMode, deviceId } = media.settings;
  if (deviceId !== camera) $("mirror").checked = facingMode !== "environment";
  camera = deviceId ?? "";
  const cameras = await media.cameras();
  $("cameras").hidden = cameras.length < 2 || source !== "camera";
  $("cameras").replaceChildren(...cameras.map((camera, i) => new Option(camera.label || `Camera ${i + 1}`, camera.deviceId)));
  $("cameras").value = deviceId ?? "";
}

function received(items) {
  const file = [...items].find(({ type }) => /^(image|video)\//.test(type));
  if (file) choose(file.type.startsWith("image/") ? "picture" : "video", file);
  return Boolean(file);
}

function paintInput() {
  painted = performance.now();
  if (source === "draw") {
    drawing.paint(input);
    return true;
  }
  if (source === "dream") return dream.paint(input);
  return media.paint(input, source === "camera" && $("mirror").checked, about.fit);
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

const fastest = () => 1000 / Math.max(RATE, 1.2 * (about.fps ?? 0)); // the server holds its rate itself

function pump() {
  if (!(rtc.connected || link?.hasRoom) || paused || rest.now) return;
  const answered = source !== "dream" || !sentAt.size; // a clip's pictures come one for each frame, when they are made
  const due = Math.max(lastSent + (answered ? fastest() : SLOWEST), freeAt - HEAD_START);
  const wait = due - performance.now();
  if (wait > 1) later(wait);
  else if (paintInput()) send();
  else later(50);
}

// Somebody is here again, whose place may have been given away.
function wake() {
  if (link?.forgotten && !paused && !document.hidden) link.connect();
  pump();
}

function later(wait) {
  clearTimeout(timer);
  if (document.hidden) clock.postMessage(wait);
  else timer = setTimeout(pump, wait);
}

function send() {
  lastSent = performance.now();
  small.drawImage(input.canvas, 0, 0, small.canvas.width, small.canvas.height);
  if (rtc.connected) return later(fastest()); // the canvas is filmed
  sentAt.set(link.sendFrame(small.canvas), lastSent);
  pump();
}

// Pictures in

async function show({ id, skipped, networkMs, busyMs, jpeg }) {
  const { socket } = link, picture = await createImageBitmap(jpeg);
  if (socket !== link.socket) return; // of a connection that is no more
  if (id > newest) { // decoding may end out of order
    sizeTo(picture.width, picture.height);
    output.drawImage(picture, 0, 0);
  }
  newest = Math.max(newest, id);
  picture.close();
  link.sendShown(id);
  const at = sentAt.get(id), latency = at === undefined ? at : performance.now() - at;
  const detail = { id, skipped, latency, networkMs, busyMs };
  figures.came(detail);
  if (at !== undefined) window.dispatchEvent(new CustomEvent("diffaccel-picture", { detail }));
  for (const old of sentAt.keys()) if (old <= id) sentAt.delete(old);
  came = true;
  if (source === "dream") pump();
}

// A picture that came over WebRTC: it has no number, and nobody knows how late it is.
function showVideo(video) {
  if (!rtc.connected || paused) return;
  sizeTo(video.videoWidth, video.videoHeight);
  output.drawImage(video, 0, 0);
  figures.came();
  came = true;
  window.dispatchEvent(new CustomEvent("diffaccel-picture", { detail: { webrtc: true } }));
}

function withoutRtc(why) {
  sentAt.clear();
  say(`WebRTC does not work here: ${why}. The page goes on without it, over its WebSocket.`, dismiss);
  pump();
}

function tick() {
  stayAwake(Boolean(media.stream) && !paused);
  const dreams = source === "dream";
  figures.look(dreams && !dream.waiting ? SLOWEST : 3000 / (about.fps || RATE));
  figures.print({ latency: !dreams && !rtc.connected, network: !rtc.connected });
  const { fresh } = figures, still = figures.still && !dreams;
  $("live-badge").hidden = !fresh && !paused;
  $("live-badge").textContent = paused ? "paused" : dreams ? "dream" : still ? "still" : "live";
  $("live-badge").title = still && !paused ? "The input hardly changes, so the last picture is shown again" : "";
  output.canvas.classList.toggle("old", !fresh && !paused);
  const comes = controls?.values.model, loads = model && comes !== model ? `Loading ${comes} …` : dreams && dream.waiting ? "Preparing the clip …" : "";
  Object.assign($("waiting"), { hidden: came && (fresh || !loads), textContent: loads || "Waiting for the first picture" });
  $("model").hidden = !about.model;
  $("model").textContent = `${model || about.model} · ${output.canvas.width} × ${output.canvas.height}`;
  if (stats.received !== undefined) count(stats);
}

// The server

function sizeTo(width, height) {
  if (size === `${width}x${height}`) return;
  size = `${width}x${height}`;
  if (recorder.resized()) say("The recording ended here and is saved: a video has pictures of one size.", dismiss);
  const less = Math.min(1, LARGEST_SIDE / Math.max(width, height));
  Object.assign(small.canvas, { width: Math.round(less * width), height: Math.round(less * height) });
  Object.assign(output.canvas, { width, height });
  document.body.style.setProperty("--ratio", width / height);
  const across = Math.max(ACROSS, width); // what is filmed or opened loses nothing on its way
  Object.assign(input.canvas, { width: across, height: Math.round((across * height) / width) });
}

function greet({ detail }) {
  const mine = controls.wanted(detail);
  if (!("picture_size" in mine || "model" in mine)) sizeTo(detail.width, detail.height);
  about = detail;
  model = detail.controls.model;
  [newest, sentAt] = [0, new Map()];
  figures.forget();
  controls.show({ ...detail.controls, ...mine });
  if (Object.keys(mine).length) link.sendControls(mine);
  if (source === "dream") dream.again();
  if (detail.webrtc) rtc.open();
  $("sources").querySelector("[data-source=dream]").hidden = !detail.dream;
  controls.defaults = detail.controls;
  state("on", "Connected");
  if (["draw", "dream"].includes(source) || media.shows) hush();
}

function problem({ detail }) {
  const again = () => { state("", "Connecting"); link.connect(); };
  if (detail.kind === "busy") {
    state("off", "Full");
    say(detail.message, ["Try again", again]);
  } else if (detail.kind === "forgotten") {
    rtc.close();
    state("off", "Left");
    say(detail.message, ["Go on", () => (paused ? pause() : again())]);
  } else {
    dream.waiting = undefined;
    if (detail.kind === "controls") refusal = detail.message;
    say(detail.message, dismiss);
  }
}

// Controls as the server has them: somebody else may have changed them, or they cannot be followed.
function followed({ detail: { values, model: paints } }) {
  controls.show(values);
  model = paints;
  if (dream.differs(values.dream)) choose(values.dream === "off" ? "draw" : "dream", undefined, true);
}

// A program that was started again has another secret: this page's address is good for nothing then.
async function lost({ detail }) {
  rtc.close();
  state("off", "Disconnected");
  const answer = await fetch(`/schema?token=${encodeURIComponent(token)}`).catch(() => null);
  if (answer?.status === 403) {
    link.stop();
    state("off", "Refused");
    say("The program was started again, with a new address: open the one that it printed.", ["Try again", () => location.reload()]);
  } else if (link.socket.readyState === WebSocket.CLOSED) {
    say(`The connection to the program is lost. Is it still running? Trying again in ${detail.seconds} s.`,
      ["Try now", () => link.connect()]);
  }
}

function pause() {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  $("pause").textContent = paused ? "Go on" : "Pause";
  if (paused) media.video.pause();
  else if (media.stream || media.url) media.video.play();
  wake();
}

function wire() {
  drawing.buildTools($("colours"), $("brushes"), $("fill"), $("undo"), $("clear"));
  for (const tab of $("sources").children) tab.onclick = () => choose(tab.dataset.source);
  for (const [name, file] of Object.entries(fileOf)) file.onchange = () => { const [chosen] = file.files; file.value = ""; if (chosen) choose(name, chosen); };
  const clicks = { choose: chooseFile[1], another: () => controls.widgets.seed.box.querySelector("button").click(), pause, obs: () => share.copy(), record: () => recorder.toggle(), full: () => share.wholeScreen(output.canvas.parentElement),
    alone: () => open(share.address("/view"), "_blank", "noopener"),
    save: () => output.canvas.toBlob((blob) => save(blob, `${fileName(controls?.values.prompt)}.png`)) };
  for (const [id, work] of Object.entries(clicks)) $(id).onclick = work;
  $("record").hidden = !recorder.works;
  $("cameras").onchange = () => openCamera($("cameras").value).catch((error) => say(error.message, retry, drawInstead));
  for (const group of [$("sources"), $("colours"), $("brushes")]) arrows(group);
  takeFiles(received);
}

async function start() {
  wire();
  preview();
  setInterval(tick, 250);
  const answer = await fetch(`/schema?token=${encodeURIComponent(token)}`).catch(() => null);
  if (!answer?.ok) {
    state("off", answer ? "Refused" : "Not reachable");
    say(answer ? await answer.text() : "The program does not answer. Is it still running?", ["Try again", () => location.reload()]);
    return;
  }
  controls = new Controls(await answer.json(), $("prompt-bar"), $("controls"), (values) => { unsay(refusal); link.sendControls(values); });
  wireControls();
  link = new Link(token, session);
  const events = { hello: greet, problem, lost, room, picture: ({ detail }) => show(detail),
    stats: ({ detail }) => { stats = detail; pump(); }, controls: followed,
    remark: ({ detail }) => controls.remark(detail.message) };
  for (const [name, work] of Object.entries(events)) link.addEventListener(name, work);
  if (source === "draw") choose("draw");
  else controls.dream(source === "dream"); // somebody was quicker than the server
}

function wireControls() {
  controls.onHistory = (count) => ($("back").disabled = !count);
  $("reset").onclick = () => controls.reset();
  $("back").onclick = () => controls.undo();
  presets(controls, $("keep"), $("load"), $("preset-file"));
  $("midi").onclick = () => listen(controls, $("midi"));
}

start();
