// The page of the planner: its controls, the address and the view say the same plan.

(() => {
  const form = document.getElementById("planner-form");
  if (form === null) return;
  const place = (name) => document.getElementById(`planner-${name}`);
  const [status, progress, view, line] = ["status", "progress", "view", "line"].map(place);
  const controls = [...form.elements].filter((each) => each.name);
  const ALWAYS = ["model", "gpus"]; // in the address; a default may change
  let number = 0;

  function written(control) {
    if (control.type === "checkbox") return control.checked ? control.value : "";
    return control.validity.badInput ? "?" : control.value;
  }

  function write(control, value) {
    if (control.type === "checkbox") control.checked = value === control.value;
    else control.value = value;
  }

  form.reset();
  const usual = Object.fromEntries(controls.map((each) => [each.name, written(each)]));
  let state = fromAddress();
  // The plan that comes with the page is that of the controls as they are at first.
  if (Object.entries(usual).some(([name, value]) => state[name] !== value)) {
    view.replaceChildren();
    line.parentElement.hidden = true;
  }

  function fromAddress() {
    const given = new URLSearchParams(location.search);
    return Object.fromEntries(
      Object.entries(usual).map(([name, value]) => [name, given.has(name) ? given.get(name) : value]),
    );
  }

  function address() {
    const said = Object.entries(state).filter(
      ([name, value]) => value !== usual[name] || ALWAYS.includes(name),
    );
    return `?${new URLSearchParams(said)}`;
  }

  function say(text) {
    status.textContent = text;
    progress.hidden = true;
  }

  function ask() {
    number += 1;
    view.setAttribute("aria-busy", "true");
    const asked = Object.fromEntries(Object.entries(state).filter(([, value]) => value));
    worker.postMessage({ number, asked });
  }

  function restore() {
    state = fromAddress();
    controls.forEach((each) => write(each, state[each.name]));
    ask();
  }

  function show({ html, line: loads, longest, most_images: most }) {
    view.innerHTML = html; // Python has escaped whatever anybody wrote
    line.textContent = loads;
    line.parentElement.hidden = !loads;
    form.elements.context.placeholder = longest === null ? "" : String(longest);
    form.elements.images.max = most === null ? "" : String(most);
  }

  let worker;
  try {
    const script = new URL(form.dataset.worker, document.baseURI);
    worker = new Worker(script, { type: "module" });
  } catch {
    say("This page plans only when it comes from a web server: python -m http.server is enough.");
    return;
  }
  worker.onerror = (event) => {
    say(`The planner cannot start here: ${event.message || "its files are not there"}.`);
  };
  worker.onmessage = ({ data }) => {
    if (data.number !== number) return; // a later change is being planned
    view.removeAttribute("aria-busy");
    if (data.failure !== undefined) {
      say(`The planner has failed: ${data.failure.trim().split("\n").pop()}`);
      return;
    }
    say("");
    show(data);
  };

  form.addEventListener("change", (event) => {
    state[event.target.name] = written(event.target);
    history.pushState(null, "", address());
    ask();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("popstate", restore);
  place("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(line.textContent);
      status.textContent = "The line is copied.";
    } catch {
      getSelection().selectAllChildren(line);
      status.textContent = "The line is selected.";
    }
  });
  restore();
})();
