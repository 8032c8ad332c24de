
"use strict";
const form = document.getElementById("filters");
const task = document.getElementById("task");
const kind = document.getElementById("kind");
const text = document.getElementById("text");
const runs = [...form.querySelectorAll("select.run")];
const cases = [...document.querySelectorAll("article")];

function fits(article) {
  if (task.value && article.dataset.task !== task.value) return false;
  if (kind.value) {
    const [ofTask, name] = JSON.parse(kind.value);
    if (article.dataset.task !== ofTask || !JSON.parse(article.dataset.kinds).includes(name)) return false;
  }
  for (const run of runs) {
    if (!run.value) continue;
    const answers = [...article.querySelectorAll(".answers dd")];
    const answer = answers.find((one) => one.dataset.run === run.dataset.run);
    if (!answer || answer.dataset.verdict !== run.value) return false;
  }
  const wanted = text.value.trim().toLowerCase();
  return !wanted || article.querySelector(".texts").textContent.toLowerCase().includes(wanted);
}

function update() {
  for (const group of kind.querySelectorAll("optgroup")) {
    const other = Boolean(task.value) && group.dataset.task !== task.value;
    group.disabled = other;
    group.hidden = other;
    if (other && group.contains(kind.selectedOptions[0])) kind.value = "";
  }
  let shown = 0;
  for (const article of cases) {
    article.hidden = !fits(article);
    if (!article.hidden) shown += 1;
  }
  document.getElementById("count").textContent = `${shown} of ${cases.length} shown`;
  document.getElementById("nothing").hidden = shown > 0;
}

function go(step) {
  const visible = cases.filter((article) => !article.hidden);
  const here = visible.findIndex((article) => article.contains(document.activeElement));
  const next = visible[here < 0 ? (step > 0 ? 0 : visible.length - 1) : here + step];
  if (next) {
    next.focus({ preventScroll: true });
    const covered = getComputedStyle(form).position === "sticky" ? form.offsetHeight : 0;
    window.scrollTo({ top: next.getBoundingClientRect().top + window.scrollY - covered - 12 });
  }
}

form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(update));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && typing) event.target.blur();
  else if (typing) return;
  else if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === "/") text.focus();
  else return;
  event.preventDefault();
});
update();
