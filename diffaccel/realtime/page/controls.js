// The controls, drawn from the server's JSON schema: what it does not list is not here.

const DELAY = 200;

export class Controls {
  // `changed` is called with the values that the person changed.
  constructor(schema, promptBar, grid, changed) {
    this.schema = schema;
    this.changed = changed;
    this.values = {};
    this.widgets = {};
    this.pending = {};
    for (const [name, field] of Object.entries(schema.properties)) {
      const inPrompt = field.group === "prompt";
      const box = this.widget(name, field, inPrompt);
      (inPrompt ? promptBar : grid).append(box);
      if (field.examples) promptBar.append(this.examples(name, field.examples));
    }
    const examples = promptBar.querySelector(".examples");
    if (examples) promptBar.append(examples);
    this.defaults = Object.fromEntries(Object.entries(schema.properties).map(([name, f]) => [name, f.default]));
    this.show(this.defaults);
  }

  widget(name, field, inPrompt) {
    const kind = field.enum ? choice : field.type === "boolean" ? toggle : field.type === "string" ? text
      : field.maximum > 1000 ? seed : slider;
    const { box, get, set, input } = kind(name, field);
    if (!inPrompt && field.description) box.append(element("small", field.description));
    else box.title = field.description;
    if (field.main) box.classList.add("main");
    const now = kind === toggle || kind === choice || kind === seed;
    box.addEventListener("input", () => this.touch(name, get(), now));
    input.addEventListener("change", () => this.flush());
    this.widgets[name] = { set, box, input };
    return box;
  }

  examples(name, texts) {
    const box = element("div", "", "examples");
    for (const example of texts) {
      const button = element("button", example);
      button.onclick = () => {
        this.widgets[name].set(example);
        this.touch(name, example, true);
      };
      box.append(button);
    }
    return box;
  }

  touch(name, value, now) {
    if (value === undefined) return;
    this.values[name] = this.pending[name] = value;
    this.dependents();
    clearTimeout(this.timer);
    if (now) this.flush();
    else this.timer = setTimeout(() => this.flush(), DELAY);
  }

  flush() {
    clearTimeout(this.timer);
    const values = this.pending;
    this.pending = {};
    if (Object.keys(values).length) this.changed(values);
  }

  reset() {
    this.show(this.defaults);
    this.pending = { ...this.defaults };
    this.flush();
  }

  // Shows values; a field that somebody types into is left alone.
  show(values) {
    for (const [name, value] of Object.entries(values)) {
      const widget = this.widgets[name];
      if (!widget || name in this.pending) continue;
      this.values[name] = value;
      if (document.activeElement !== widget.input) widget.set(value);
    }
    this.dependents();
  }

  // What has no effect now is greyed out, as the schema's `needs` say.
  dependents() {
    for (const [name, field] of Object.entries(this.schema.properties)) {
      if (!field.needs) continue;
      const works = Object.entries(field.needs).every(([other, wanted]) =>
        Array.isArray(wanted) ? wanted.includes(this.values[other]) : Boolean(this.values[other]) === wanted);
      for (const part of this.widgets[name].box.querySelectorAll("input, select, button")) part.disabled = !works;
    }
    for (const button of document.querySelectorAll(".examples button")) {
      button.setAttribute("aria-pressed", button.textContent === this.values.prompt);
    }
  }
}

function element(tag, content = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = className;
  return made;
}

function labelled(name, field, input, className = "") {
  const box = element("div", "", `field ${className}`);
  const label = element("label", field.title);
  input.id = label.htmlFor = `control-${name}`;
  box.append(label);
  return { box, label };
}

function text(name, field) {
  const input = Object.assign(element("input"), {
    type: "text", maxLength: field.maxLength ?? 500, placeholder: field.placeholder ?? "", autocomplete: "off", spellcheck: false,
  });
  const { box } = labelled(name, field, input);
  box.append(input);
  const get = () => (input.value.trim().length < (field.minLength ?? 0) ? undefined : input.value);
  return { box, input, get, set: (value) => (input.value = value) };
}

function slider(name, field) {
  const step = field.step ?? 1;
  const input = Object.assign(element("input"), { type: "range", min: field.minimum, max: field.maximum, step });
  const { box, label } = labelled(name, field, input);
  const output = element("output");
  const digits = (String(step).split(".")[1] ?? "").length;
  const print = () => (output.textContent = Number(input.value).toFixed(digits));
  label.append(output);
  box.append(input);
  box.addEventListener("input", print);
  return { box, input, get: () => Number(input.value), set: (value) => { input.value = value; print(); } };
}

function seed(name, field) {
  const input = Object.assign(element("input"), { type: "number", min: field.minimum, max: field.maximum, step: 1 });
  const { box } = labelled(name, field, input);
  const dice = Object.assign(element("button", "Shuffle", "tool"), { title: "Another picture" });
  const row = element("div", "", "seed");
  row.append(input, dice);
  box.append(row);
  dice.onclick = () => {
    input.value = Math.floor(Math.random() * 10000);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const get = () => (input.value !== "" && input.checkValidity() ? Number(input.value) : undefined);
  return { box, input, get, set: (value) => (input.value = value) };
}

function toggle(name, field) {
  const input = Object.assign(element("input"), { type: "checkbox" });
  const { box } = labelled(name, field, input, "switch");
  box.append(input);
  return { box, input, get: () => input.checked, set: (value) => (input.checked = value) };
}

function choice(name, field) {
  const input = element("select");
  for (const value of field.enum) input.append(Object.assign(element("option", field.labels?.[value] ?? value), { value }));
  const { box } = labelled(name, field, input);
  box.append(input);
  return { box, input, get: () => input.value, set: (value) => (input.value = value) };
}
