// "Dream": a clip without end that the server makes, from the words alone or going on from what the input showed.

export class Dream {
  // `ask` sends controls to the server.
  constructor(note, name, ask) {
    this.note = note;
    this.name = name;
    this.ask = ask;
    this.start = "off";
    this.picture = document.createElement("canvas");
  }

  // Takes the input as it is, if there is anything on it.
  begin(input, shows, tell) {
    Object.assign(this.picture, { width: input.width, height: input.height });
    if (shows) this.picture.getContext("2d").drawImage(input, 0, 0);
    this.shows = shows;
    this.note.hidden = shows;
    this.name.textContent = shows ? "Goes on from this picture" : "";
    this.start = shows ? "input" : "words";
    if (tell) this.again();
  }

  end(tell) {
    if (this.start === "off") return;
    this.start = "off";
    this.note.hidden = true;
    if (tell) this.again();
  }

  again() {
    this.waiting = this.start;
    this.ask({ dream: this.start });
  }

  // Whether the server says something else than this page, which is not on its way there.
  differs(value) {
    if (this.waiting === value) this.waiting = undefined;
    return value !== undefined && this.waiting === undefined && (value === "off") !== (this.start === "off");
  }

  paint(context) {
    blank(context);
    if (this.shows) context.drawImage(this.picture, 0, 0, context.canvas.width, context.canvas.height);
    return true;
  }
}

// Shows nothing.
export function blank(context) {
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--well");
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}
