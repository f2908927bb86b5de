// The theme button and the samples browser.
(() => {
  "use strict";
  const root = document.documentElement, button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  function apply(theme) {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    try { localStorage.setItem("theme", theme); } catch { /* a page opened from disk may have no storage */ }
  }
  const asked = new URLSearchParams(location.search).get("theme") || stored();
  let theme = themes.includes(asked) ? asked : "system";
  apply(theme);
  button.onclick = () => apply(theme = themes[(themes.indexOf(theme) + 1) % themes.length]);

  document.querySelector("nav details").open = matchMedia("(min-width: 72rem)").matches;

  const form = document.getElementById("browser"), texts = document.getElementById("texts");
  if (!form) return;
  const samples = JSON.parse(document.getElementById("sample-data").textContent);
  const top = Number(document.getElementById("scale")?.dataset.top);
  const ALL = "all variants";
  const unique = values => [...new Set(values)];
  const labels = new Map(samples.map(s => [s.variant, s.label]));
  function fill(select, values, shown = String) {
    const before = select.value;
    select.replaceChildren(...values.map(v => new Option(shown(v), v)));
    if (values.map(String).includes(before)) select.value = before;
  }
  function coloured({ pieces, kl }) {
    return pieces.map((piece, i) => {
      const token = Object.assign(document.createElement("span"), { className: "token", textContent: piece, title: `KL ${kl[i].toFixed(2)}` });
      token.style.setProperty("--kl", `${Math.round(100 * Math.min(1, kl[i] / top))}%`);
      return token;
    });
  }
  // The colours in words.
  function along({ pieces, kl }) {
    if (!kl.length) return [];
    const most = Math.max(...kl), where = pieces[kl.indexOf(most)].trim();
    return [["KL per token", kl.reduce((sum, v) => sum + v, 0) / kl.length], [where ? `highest, at “${where}”,` : "highest", most]];
  }
  function card(title, prompt, text, scores) {
    const article = document.createElement("article");
    const add = (tag, name, content, parent = article) => parent.appendChild(Object.assign(document.createElement(tag), { className: name, textContent: content }));
    add("h3", "", title);
    const body = add("p", "", "");
    add("span", "prompt", prompt, body);
    body.append(...text);
    add("p", "scores", scores.filter(([, v]) => typeof v === "number").map(([n, v]) => `${n} ${Number(v.toPrecision(3))}`).join(" · "));
    return article;
  }
  function show() {
    const one = form.variant.value !== ALL;
    fill(form.seed, unique(samples.filter(s => !one || s.variant === form.variant.value).map(s => s.seed)));
    const found = samples.filter(s => s.prompt === form.prompt.value && String(s.seed) === form.seed.value && (!one || s.variant === form.variant.value));
    const teacher = found.slice(0, one ? found.length : 1).map(s => card("Teacher", s.prompt, [s.teacher_text ?? ""], [["its own perplexity", s.teacher_text_ppl]]));
    const students = found.map(s => {
      const article = card(`${s.label}, seed ${s.seed}`, s.prompt, s.pieces.length ? coloured(s) : [s.text ?? ""], [
        ["teacher’s perplexity", s.teacher_ppl], ["distinct-1", s.distinct_1], ["distinct-2", s.distinct_2], ["repetition", s.repetition], ...along(s)]);
      article.classList.toggle("leaks", s.leaks);
      return article;
    });
    const cards = one ? students.flatMap((student, i) => [teacher[i], student]) : [...teacher, ...students];
    texts.replaceChildren(...cards);
  }
  fill(form.prompt, unique(samples.map(s => s.prompt)));
  fill(form.variant, [...labels.keys(), ALL], v => labels.get(v) ?? v);
  if (labels.has(form.dataset.first)) form.variant.value = form.dataset.first;
  form.addEventListener("change", show);
  show();
})();
