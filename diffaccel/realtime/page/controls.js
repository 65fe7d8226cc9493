// The controls, drawn from the server's JSON schema: what it does not list is not here.

const DELAY = 200, LONGEST_HISTORY = 99;
const TYPED = ["text", "number"];
const NOW = "now", ALONG = "along", RESTED = "rested"; // when a change is sent: also while a slider moves, but not while somebody types

export class Controls {
  // `changed` is called with the values that the person changed.
  constructor(schema, promptBar, grid, changed) {
    this.schema = schema;
    this.changed = changed;
    this.values = {};
    this.widgets = {};
    this.pending = {};
    this.moving = new Set(); // what somebody has in hand: one step back, however long it takes
    this.history = [];
    for (const [name, field] of Object.entries(schema.properties)) {
      if (field.choices) field.enum = schema.about[field.choices] ?? [];
      if (field.hidden || (field.beside && !schema.about[field.beside]?.length)) continue;
      const inPrompt = field.group === "prompt";
      const box = this.widget(name, field, inPrompt);
      (inPrompt ? promptBar : grid).append(box);
      if (field.examples) promptBar.append(this.examples(name, field.examples));
    }
    const examples = promptBar.querySelector(".examples");
    if (examples) promptBar.append(examples);
    this.remarks = element("p", "", "remark");
    this.remark("");
    this.remarks.setAttribute("role", "status");
    promptBar.append(this.remarks);
    this.defaults = Object.fromEntries(Object.entries(schema.properties).map(([name, f]) => [name, f.default]));
    this.show(this.defaults);
  }

  widget(name, field, inPrompt) {
    const kind = field.enum ? choice : field.type === "boolean" ? toggle : field.type === "string" ? text
      : field.maximum > 1000 ? seed : slider;
    const { box, get, set, input, wrong } = kind(name, field);
    const about = element("small", field.description);
    about.id = `about-${name}`;
    const note = element("small", "", "wrong");
    note.id = `wrong-${name}`;
    note.hidden = true;
    if (!inPrompt && field.description) box.append(about);
    else box.title = field.description;
    if (field.main) box.classList.add("main");
    const when = kind === slider ? ALONG : kind === text ? RESTED : NOW;
    box.append(note);
    input.setAttribute("aria-describedby", inPrompt ? note.id : `${about.id} ${note.id}`);
    const check = () => {
      note.textContent = wrong?.(this.values[name]) ?? "";
      note.hidden = !note.textContent;
      input.setAttribute("aria-invalid", !note.hidden);
    };
    box.addEventListener("input", () => {
      check();
      this.touch(name, get(), when);
    });
    input.addEventListener("change", () => this.flush());
    input.addEventListener("blur", () => get() !== undefined && !this.moving.has(name) && set(this.values[name])); // what came in the meantime
    this.widgets[name] = { set, box, input, check };
    return box;
  }

  examples(name, texts) {
    const box = element("div", "", "examples");
    for (const example of texts) {
      const button = element("button", example);
      button.onclick = () => {
        this.widgets[name].set(example);
        this.touch(name, example, NOW);
      };
      box.append(button);
    }
    return box;
  }

  touch(name, value, when) {
    if (value === undefined || value === this.values[name]) return;
    if (!this.moving.has(name)) this.remember();
    this.moving.add(name);
    this.values[name] = this.pending[name] = value;
    this.dependents();
    clearTimeout(this.rest);
    if (when === NOW) return this.flush();
    this.rest = setTimeout(() => this.flush(), DELAY);
    if (when === ALONG) this.along ??= setTimeout(() => this.send(), DELAY);
  }

  send() {
    clearTimeout(this.along);
    this.along = undefined;
    const values = this.pending;
    this.pending = {};
    if (Object.keys(values).length) this.changed(values);
  }

  flush() {
    clearTimeout(this.rest);
    this.moving.clear();
    this.send();
  }

  // What is not as the server began, to ask for of one that greets: it may have been started again, as another one.
  wanted({ controls, ...about }) {
    const offered = (name, value) => {
      const { choices, pattern } = this.schema.properties[name];
      return !choices || (about[choices] ?? []).includes(value) || (pattern && about.model === this.schema.about.model);
    };
    const mine = ([name, value]) => name in controls && value !== this.defaults[name] && offered(name, value);
    return Object.fromEntries(Object.entries(this.values).filter(mine));
  }

  // Whether there is such a control, and what a preset chooses is offered here.
  has(name, value) {
    if (!Object.hasOwn(this.widgets, name)) return false;
    const field = this.schema.properties[name];
    return !field.choices || Boolean(field.pattern) || value === this.defaults[name] || field.enum.includes(value);
  }

  // Several at once, as of a preset; what is not here is left out, and told.
  take(values) {
    const known = Object.fromEntries(Object.entries(values).filter(([name, value]) => this.has(name, value)));
    this.flush();
    this.remember();
    document.activeElement?.blur();
    this.show(known);
    this.changed(known);
    return Object.keys(values).filter((name) => !Object.hasOwn(known, name))
      .map((name) => (Object.hasOwn(this.widgets, name) ? `${name} “${values[name]}”` : name));
  }

  // Moves a slider to a fraction of its way.
  turn(name, fraction) {
    const input = this.widgets[name]?.input;
    if (input?.type !== "range" || input.disabled) return;
    input.value = Number(input.min) + fraction * (input.max - input.min);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  remark(words) {
    this.remarks.textContent = words;
    this.remarks.hidden = !words;
  }

  remember() {
    this.history = [...this.history.slice(-LONGEST_HISTORY), { ...this.values }];
    this.onHistory?.(this.history.length);
  }

  undo() {
    this.flush();
    let before;
    do before = this.history.pop(); while (before && same(before, this.values)); // a change that was refused
    this.onHistory?.(this.history.length);
    if (!before) return;
    document.activeElement?.blur();
    this.show(before);
    this.changed(before);
  }

  reset() {
    this.take(this.defaults);
  }

  // Shows values; a field that somebody types into is left alone.
  show(values) {
    for (const [name, value] of Object.entries(values)) {
      const widget = this.widgets[name];
      if (!widget || this.moving.has(name)) continue;
      this.values[name] = value;
      if (document.activeElement === widget.input && TYPED.includes(widget.input.type)) continue;
      widget.set(value);
      widget.check();
    }
    this.dependents();
  }

  // While a clip plays, many controls have no effect.
  dream(on) {
    this.dreaming = on;
    this.dependents();
  }

  // What has no effect now is greyed out, as the schema's `needs` say.
  dependents() {
    for (const [name, field] of Object.entries(this.schema.properties)) {
      if (!this.widgets[name]) continue;
      const counts = !this.dreaming || this.schema.about.followed_by_clips.includes(name);
      const works = counts && Object.entries(field.needs ?? {}).every(([other, wanted]) =>
        Array.isArray(wanted) ? wanted.includes(this.values[other]) : Boolean(this.values[other]) === wanted);
      for (const part of this.widgets[name].box.querySelectorAll("input, select, button")) part.disabled = !works;
    }
    for (const button of document.querySelectorAll(".examples button")) {
      button.setAttribute("aria-pressed", button.textContent === this.values.prompt);
    }
  }
}

const same = (some, others) => Object.entries(some).every(([name, value]) => value === others[name]);

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
    type: "text", placeholder: field.placeholder ?? "", autocomplete: "off", spellcheck: false,
  });
  const { box } = labelled(name, field, input);
  box.append(input);
  const { minLength: least = 0, maxLength: most = Infinity } = field;
  const length = () => [...input.value.trim()].length;
  const trouble = () => (length() < least ? "Empty" : length() > most ? `${length() - most} characters too many` : "");
  const get = () => (trouble() ? undefined : input.value);
  const wrong = (last) => trouble() && `${trouble()}; still used: ${last ? `“${last}”` : "nothing"}`;
  return { box, input, get, wrong, set: (value) => (input.value = value) };
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
  const good = () => input.value !== "" && input.checkValidity();
  const get = () => (good() ? Number(input.value) : undefined);
  const wrong = (last) => (good() ? "" : `A whole number from ${field.minimum} to ${field.maximum}; ${last} is used until then.`);
  return { box, input, get, wrong, set: (value) => (input.value = value) };
}

function toggle(name, field) {
  const input = Object.assign(element("input"), { type: "checkbox" });
  const { box } = labelled(name, field, input, "switch");
  box.append(input);
  return { box, input, get: () => input.checked, set: (value) => (input.checked = value) };
}

function choice(name, field) {
  const input = element("select");
  const offer = (value) => {
    const words = field.labels?.[value] ?? value.replace(/^(\d+)x(\d+)$/, "$1 × $2");
    input.append(Object.assign(element("option", words), { value }));
  };
  for (const value of field.enum) offer(value);
  const { box } = labelled(name, field, input);
  box.append(input);
  const set = (given) => {
    const value = String(given); // a preset may hold anything
    if (![...input.options].some((option) => option.value === value)) offer(value); // what came from outside
    input.value = value;
    box.hidden = input.options.length < 2;
  };
  return { box, input, get: () => input.value, set };
}
