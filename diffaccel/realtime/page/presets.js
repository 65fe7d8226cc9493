// All controls as a file, and back.

import { fileName, save } from "./record.js";
import { dismiss, say } from "./say.js";

export function presets(controls, keep, load, input) {
  keep.onclick = () => save(new Blob([JSON.stringify(controls.values, null, 2)], { type: "application/json" }),
    `${fileName(controls.values.prompt)}.json`);
  load.onclick = () => input.click();
  input.onchange = async () => {
    const [file] = input.files;
    input.value = "";
    try {
      const values = JSON.parse(await file.text());
      if (values === null || typeof values !== "object" || Array.isArray(values)) throw new SyntaxError("it lists no controls");
      const unknown = controls.take(values);
      if (unknown.length) say(`${file.name}: this program has no ${unknown.join(", ")}; the rest is taken.`, dismiss);
    } catch (error) {
      say(`${file.name} is no preset: ${error.message}. Choose a file that “Save preset” made.`, dismiss);
    }
  };
}
