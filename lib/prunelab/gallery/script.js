// Light or dark, and search. Without this file the pages can be read all the same.
const root = document.documentElement;
const [form, words, found, contents] = ["form", "#words", "#found", ".contents"].map((of) => document.querySelector(of));
form.hidden = false;

document.querySelector("#scheme").addEventListener("click", () => {
  const now = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.style.colorScheme = now === "dark" ? "light" : "dark";
  localStorage.setItem("scheme", root.style.colorScheme);
});

function search() {
  const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (text) => asked.every((word) => text.toLowerCase().includes(word));
  const hits = asked.length ? SECTIONS.filter((of) => has(`${of.page} ${of.heading} ${of.text}`)) : [];
  hits.sort((a, b) => has(b.heading) - has(a.heading));
  const told = `${hits.length} ${hits.length === 1 ? "section" : "sections"} found${hits.length > 20 ? "; the first 20" : ""}`;
  found.querySelector("p").textContent = asked.length ? told : "";
  found.querySelector("ol").replaceChildren(...hits.slice(0, 20).map((of) => {
    const item = document.createElement("li");
    const link = item.appendChild(document.createElement("a"));
    link.href = of.url;
    link.textContent = `${of.page}: ${of.heading}`;
    const at = Math.max(0, of.text.toLowerCase().indexOf(asked[0]) - 60);
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
  if (event.target.closest("a")) setTimeout(clear); // once the link was followed
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !words.value) return;
  clear();
  words.focus();
});

if (contents && innerWidth < 960) contents.open = false;
for (const box of document.querySelectorAll(".wide")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; // what scrolls must be reached by keys
}
