// What is wrong, in words, with buttons to go on; a box over the page, so that nothing moves.

const box = document.getElementById("message");

export function say(words, ...actions) {
  box.hidden = false;
  const said = box.querySelector("p");
  if (said.textContent !== words) said.textContent = words; // or it would be read out again
  const buttons = actions.map(([label, work]) => {
    const button = document.createElement("button");
    button.textContent = label;
    button.onclick = work;
    return button;
  });
  box.querySelector(".actions").replaceChildren(...buttons);
}

export const hush = () => (box.hidden = true);
export const dismiss = ["Dismiss", hush];

// How the connection is, beside a light.
export function state(kind, words) {
  const light = document.getElementById("state");
  light.className = `state ${kind}`;
  light.lastElementChild.textContent = words;
}
