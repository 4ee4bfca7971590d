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

// Small letters without accents, dashes and quotes as they are typed; no letter moves, so that a place in one text is one
// in the other.
const fold = (text) => text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").normalize("NFC")
  .replace(/[\u2010-\u2015\u2212]/g, "-").replace(/[\u2018\u2019]/g, "'").toLowerCase();

function marked(text, word) { // the pieces of a text, with the word's first place
  const at = fold(text).indexOf(word);
  if (at < 0) return [text];
  const mark = document.createElement("mark");
  mark.textContent = text.slice(at, at + word.length);
  return [text.slice(0, at), mark, text.slice(at + word.length)];
}
function search() {
  const asked = fold(words.value.normalize("NFKC")).split(/\s+/).filter(Boolean);
  if (!asked.length) return close();
  const has = (folded) => asked.every((word) => folded.includes(word));
  const hits = SECTIONS.filter((of) => has(`${of.title} ${of.folded}`));
  hits.sort((a, b) => has(b.title) - has(a.title));
  const told = `${hits.length} ${hits.length === 1 ? "section" : "sections"} found${hits.length > 20 ? "; the first 20" : ""}`;
  const none = "Nothing found. Try fewer words, or the name of a method, such as RigL.";
  found.querySelector("p").textContent = hits.length ? told : none;
  found.querySelector("ol").replaceChildren(...hits.slice(0, 20).map((of) => {
    const item = document.createElement("li");
    const link = item.appendChild(document.createElement("a"));
    link.href = of.url;
    link.append(...marked(`${of.page}: ${of.heading}`, asked[0]));
    const at = Math.max(0, of.folded.indexOf(asked[0]) - 60);
    item.append(...marked(` ${at ? "…" : ""}${of.text.slice(at, at + 160)}…`, asked[0]));
    return item;
  }));
}
function close() {
  for (const part of found.children) part.replaceChildren();
}
function ask() { // the texts of all pages come once they are needed
  if (typeof SECTIONS !== "undefined") return search();
  if (document.querySelector("#sections")) return;
  const texts = document.head.appendChild(document.createElement("script"));
  texts.id = "sections";
  texts.src = "sections.js";
  texts.onload = () => {
    for (const of of SECTIONS) [of.title, of.folded] = [fold(`${of.page}: ${of.heading}`), fold(of.text)];
    search();
  };
}
words.addEventListener("focus", ask);
words.addEventListener("input", ask);
addEventListener("pageshow", () => { // who comes back finds the hits again
  if (words.value) ask();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  found.querySelector("a")?.focus();
});
found.addEventListener("click", (event) => {
  const opensHere = !event.ctrlKey && !event.metaKey && !event.shiftKey;
  if (event.target.closest("a") && opensHere) setTimeout(close); // once the link was followed
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || !words.value || !event.target.closest("form, #found")) return;
  words.value = "";
  close();
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
