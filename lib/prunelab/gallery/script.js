// Colours, and search. Without this file the pages can be read all the same.
const root = document.documentElement;
const [form, words, found, contents, scheme] = ["form", "#words", "#found", ".contents", "#scheme"].map((of) =>
  document.querySelector(of));
form.hidden = false;

scheme.value = root.style.colorScheme;
scheme.addEventListener("change", () => {
  root.style.colorScheme = scheme.value;
  try { localStorage.setItem("scheme", scheme.value); } catch {} // where nothing may be kept
});

// Letters without accents, dashes and quotes as they are typed; Japanese as it is.
const fold = (text) => text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").replace(/[\u2010-\u2015\u2212]/g, "-")
  .replace(/[\u2018\u2019]/g, "'").toLowerCase();
words.addEventListener("focus", () => { // the texts of all pages, once they are needed
  if (document.querySelector("#sections")) return;
  const texts = document.head.appendChild(document.createElement("script"));
  texts.id = "sections";
  texts.src = "sections.js";
  texts.onload = search;
});

function search() {
  if (typeof SECTIONS === "undefined") return;
  const asked = fold(words.value).split(/\s+/).filter(Boolean);
  const has = (text) => asked.every((word) => fold(text).includes(word));
  const hits = asked.length ? SECTIONS.filter((of) => has(`${of.page} ${of.heading} ${of.text}`)) : [];
  hits.sort((a, b) => has(b.heading) - has(a.heading));
  const told = `${hits.length} ${hits.length === 1 ? "section" : "sections"} found${hits.length > 20 ? "; the first 20" : ""}`;
  const none = "Nothing found. Try fewer words, or the name of a method, such as RigL.";
  found.querySelector("p").textContent = asked.length ? (hits.length ? told : none) : "";
  found.querySelector("ol").replaceChildren(...hits.slice(0, 20).map((of) => {
    const item = document.createElement("li");
    const link = item.appendChild(document.createElement("a"));
    link.href = of.url;
    link.textContent = `${of.page}: ${of.heading}`;
    const at = Math.max(0, fold(of.text).indexOf(asked[0]) - 60);
    item.append(` ${at ? "…" : ""}${of.text.slice(at, at + 160)}…`);
    return item;
  }));
}
words.addEventListener("input", search);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  found.querySelector("a")?.focus();
});
function clear() {
  words.value = "";
  search();
}
found.addEventListener("click", (event) => {
  const opensHere = !event.ctrlKey && !event.metaKey && !event.shiftKey;
  if (event.target.closest("a") && opensHere) setTimeout(clear); // once the link was followed
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || !words.value || !event.target.closest("form, #found")) return;
  clear();
  words.focus();
});

const isNarrow = matchMedia("(max-width: 59.99rem)");
if (contents && isNarrow.matches) contents.open = false;
contents?.addEventListener("click", (event) => {
  if (event.target.closest("a") && isNarrow.matches) contents.open = false;
});
const reachable = new ResizeObserver((changes) => { // what scrolls must be reached by keys
  for (const { target } of changes) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
});
for (const box of document.querySelectorAll(".wide, .output_png")) reachable.observe(box);
