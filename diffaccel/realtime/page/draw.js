// The drawing canvas: strokes as vectors, so that they can be undone; a heart beats on it until somebody draws.

import { select } from "./groups.js";

const COLOURS = ["#e53935", "#fb8c00", "#fdd835", "#43a047", "#1e88e5", "#8e24aa", "#6d4c41", "#212121", "#ffffff"];
const NAMES = ["red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white"];
const BRUSHES = [10, 24, 56];
const STEP = 8;
export const ACROSS = 512; // units of a drawing from left to right, whatever pixels the canvas has
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Drawing {
  constructor(canvas, hint, pen) {
    this.canvas = canvas;
    this.hint = hint;
    this.pen = pen;
    this.at = null; // the keyboard's pen
    this.strokes = [{ heart: true }];
    this.pose = 0;
    this.beating = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.colour = COLOURS[0];
    this.brush = BRUSHES[1];
    this.fill = true;
    this.enabled = true;
    this.done = document.createElement("canvas").getContext("2d"); // the strokes that are finished, so that the thousandth costs no more
    this.drawn = Infinity; // how many of them; more than there are: none of them
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => event.pointerId === this.pointer && this.lift());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.lift());
    canvas.addEventListener("focus", () => this.showPen());
    document.addEventListener("keydown", (event) => {
      const elsewhere = event.target.closest("#prompt-bar, #controls"); // who is there means something else
      if (this.enabled && !elsewhere && event.key.toLowerCase() === "z" && !event.shiftKey && (event.ctrlKey || event.metaKey)) this.undo();
    });
  }

  begin(event) {
    if (!this.enabled || event.button > 0 || !event.isPrimary) return; // a second finger, or the palm
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.hold();
    this.pointer = event.pointerId;
    this.stroke = this.newStroke(this.point(event));
  }

  move(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.stroke.points.push(this.point(part));
  }

  // Arrow keys move the pen (with Shift farther), space or Enter puts it down or lifts it.
  key(event) {
    const [x, y] = MOVES[event.key] ?? [];
    const toggles = event.key === " " || event.key === "Enter";
    if (!this.enabled || (x === undefined && !toggles) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [width, height] = this.size;
    this.at ??= [width / 2, height / 2];
    if (toggles) {
      const begins = !this.stroke;
      this.hold();
      if (begins) this.stroke = this.newStroke([...this.at]);
    } else {
      const step = event.shiftKey ? 4 * STEP : STEP;
      this.at = [Math.min(width, Math.max(0, this.at[0] + x * step)), Math.min(height, Math.max(0, this.at[1] + y * step))];
      this.stroke?.points.push([...this.at]);
    }
    this.showPen();
  }

  newStroke(point) {
    const stroke = { colour: this.colour, brush: this.brush, fill: this.fill, points: [point] };
    this.strokes.push(stroke);
    return stroke;
  }

  showPen() {
    const [width, height] = this.size;
    this.pen.hidden = !this.enabled || !this.at || document.activeElement !== this.canvas;
    if (!this.at) return;
    Object.assign(this.pen.style, { left: `${(100 * this.at[0]) / width}%`, top: `${(100 * this.at[1]) / height}%` });
    this.pen.classList.toggle("down", Boolean(this.stroke));
  }

  get size() {
    return [ACROSS, (ACROSS * this.canvas.height) / this.canvas.width];
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = ACROSS / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  lift() {
    this.stroke = this.pointer = null;
    this.showPen();
  }

  // Before the strokes change: what was begun is finished, and the heart stands still.
  hold() {
    this.lift();
    this.drawn = Infinity;
    if (this.beating) this.pose = this.time();
    this.beating = false;
    this.touched = this.hint.hidden = true;
  }

  undo() {
    this.hold();
    this.strokes.pop();
  }

  // An empty canvas is a step like a stroke, so that it can be taken back.
  clear() {
    this.hold();
    if (this.strokes.length && !this.strokes.at(-1).empties) this.strokes.push({ empties: true });
  }

  // Whether somebody drew what is on it.
  get shows() {
    return Boolean(this.touched && this.strokes.length && !this.strokes.at(-1).empties);
  }

  time() {
    return this.beating ? performance.now() / 1000 : this.pose;
  }

  paint(context) {
    const { width, height } = this.canvas, { done } = this, scale = width / ACROSS, finished = this.strokes.length - (this.stroke ? 1 : 0);
    if (this.beating || this.drawn > finished || done.canvas.width !== width || done.canvas.height !== height) {
      Object.assign(done.canvas, { width, height });
      done.fillStyle = "#fff";
      done.fillRect(0, 0, width, height);
      done.scale(scale, scale);
      this.drawn = 0;
    }
    for (; this.drawn < finished; this.drawn++) this.paintStroke(done, this.strokes[this.drawn]);
    context.drawImage(done.canvas, 0, 0);
    if (!this.stroke) return;
    context.save();
    context.scale(scale, scale);
    this.paintStroke(context, this.stroke);
    context.restore();
  }

  paintStroke(context, { heart, empties, colour, brush, fill, points }) {
    if (heart) return this.paintHeart(context);
    if (empties) {
      context.fillStyle = "#fff";
      return context.fillRect(0, 0, ...this.size);
    }
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = brush;
    context.beginPath();
    context.moveTo(...points[0]);
    for (const [x, y] of points) context.lineTo(x, y);
    if (fill && points.length > 2) context.fill();
    context.stroke();
  }

  paintHeart(context) {
    const t = this.time() * 2 * Math.PI;
    const beat = 1 + 0.045 * Math.sin(t / 1.6) + 0.02 * Math.sin(t / 0.8);
    const [width, height] = this.size;
    const side = Math.min(width, height);
    context.save();
    context.translate(width / 2, height / 2 + 0.03 * side);
    context.rotate(0.1 * Math.sin(t / 4.1));
    context.scale((beat * side) / 512, (beat * side) / 512);
    context.fillStyle = COLOURS[0];
    context.beginPath();
    context.moveTo(0, 175);
    context.bezierCurveTo(-250, 0, -200, -190, -90, -175);
    context.bezierCurveTo(-40, -170, -10, -135, 0, -105);
    context.bezierCurveTo(10, -135, 40, -170, 90, -175);
    context.bezierCurveTo(200, -190, 250, 0, 0, 175);
    context.fill();
    context.restore();
  }

  buildTools(colours, brushes, fill, undo, clear) {
    const choose = (group, element) => select(group, "aria-checked", element);
    const radio = (group, label) => {
      const button = document.createElement("button");
      button.setAttribute("role", "radio");
      button.title = label;
      button.setAttribute("aria-label", label);
      group.append(button);
      return button;
    };
    COLOURS.forEach((colour, i) => {
      const button = radio(colours, NAMES[i]);
      button.style.background = colour;
      button.onclick = () => { this.colour = colour; choose(colours, button); };
    });
    const custom = document.createElement("input");
    Object.assign(custom, { type: "color", value: "#00acc1", title: "another colour", ariaLabel: "another colour" });
    custom.oninput = () => { this.colour = custom.value; choose(colours, custom); };
    colours.append(custom);
    BRUSHES.forEach((brush, i) => {
      const button = radio(brushes, ["thin", "medium", "thick"][i]);
      button.style.setProperty("--dot", `${[5, 10, 17][i]}px`);
      button.onclick = () => { this.brush = brush; choose(brushes, button); };
    });
    choose(colours, colours.children[0]);
    choose(brushes, brushes.children[1]);
    fill.onclick = () => fill.setAttribute("aria-pressed", (this.fill = !this.fill));
    undo.onclick = () => this.undo();
    clear.onclick = () => this.clear();
  }
}
