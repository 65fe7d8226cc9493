// Groups of which one is chosen, tabs and radio buttons: Tab goes to the chosen one, arrow keys to its neighbours.

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export function select(group, attribute, chosen) {
  for (const member of group.children) {
    member.setAttribute(attribute, member === chosen);
    member.tabIndex = member === chosen ? 0 : -1;
  }
}

export function arrows(group) {
  group.addEventListener("keydown", (event) => {
    const step = STEPS[event.key], members = [...group.children].filter((member) => !member.hidden);
    if (!step || !members.includes(event.target)) return;
    event.preventDefault();
    const next = members.at((members.indexOf(event.target) + step) % members.length);
    next.focus();
    if (next.getAttribute("role") === "radio") next.click(); // tabs ask for a camera, so they wait for Enter
  });
}
