// Knobs of a MIDI controller move sliders: touch a slider, then turn a knob, and they belong together from then on.

import { dismiss, say } from "./say.js";

const KEY = "diffaccel-midi", CONTROL_CHANGE = 0xb0;
const MEANT = 5000; // milliseconds after a touch within which a knob that belongs to another slider changes over

export async function listen(controls, button) {
  if (!navigator.requestMIDIAccess) {
    say("This browser has no Web MIDI. Chromium, Chrome, Edge and Firefox have it, on pages of this machine or over https.", dismiss);
    return;
  }
  let access;
  try {
    access = await navigator.requestMIDIAccess();
  } catch {
    say("The browser may not use MIDI. Allow it in the address bar, then try again.", dismiss);
    return;
  }
  const bound = JSON.parse(localStorage.getItem(KEY) ?? "{}");
  let touched = null, at = 0;
  for (const [name, { input }] of Object.entries(controls.widgets)) {
    if (input.type !== "range") continue;
    for (const event of ["pointerdown", "focus"]) input.addEventListener(event, () => ([touched, at] = [name, performance.now()]));
  }
  const hear = ({ data: [status, number, value] }) => {
    if ((status & 0xf0) !== CONTROL_CHANGE) return;
    const knob = `${status & 0x0f}:${number}`;
    if (touched && (!bound[knob] || performance.now() - at < MEANT)) {
      bound[knob] = touched;
      localStorage.setItem(KEY, JSON.stringify(bound));
      touched = null;
    }
    controls.turn(bound[knob], value / 127);
  };
  const attach = () => { for (const input of access.inputs.values()) input.onmidimessage = hear; };
  access.onstatechange = attach;
  attach();
  button.setAttribute("aria-pressed", true);
  const names = [...access.inputs.values()].map(({ name }) => name).join(", ");
  say(names ? `${names}: touch a slider, then turn a knob; they belong together from then on.`
    : "No MIDI controller is plugged in. Once one is: touch a slider, then turn a knob.", dismiss);
}
