// What is wrong, in words, with buttons to go on; a box over the page, so that nothing moves.

const box = document.getElementById("message");

export function say(words, ...actions) {
  box.hidden = false;
  const said = box.querySelector("p");
  if (said.textContent !== words) said.textContent = words; // or it would be read out again
  const list = box.querySelector(".actions"), labels = actions.map(([label]) => label);
  if (labels.join() !== [...list.children].map(({ textContent }) => textContent).join()) {
    list.replaceChildren(...labels.map((label) => Object.assign(document.createElement("button"), { textContent: label })));
  } // or who is on one of them would lose it
  actions.forEach(([, work], i) => (list.children[i].onclick = work));
}

export const hush = () => (box.hidden = true);
export const dismiss = ["Dismiss", hush];

// Takes back what was said, unless something else was said since.
export const unsay = (words) => box.querySelector("p").textContent === words && hush();

addEventListener("keydown", ({ key }) => key === "Escape" && box.querySelector("button:last-child")?.onclick === hush && hush());

// How the connection is, beside a light.
export function state(kind, words) {
  const light = document.getElementById("state");
  light.className = `state ${kind}`;
  light.lastElementChild.textContent = words;
}
