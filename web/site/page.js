"use strict";

// 写诗、往日，与整张页面的按钮和键盘

const IDEAS = ["一只鸟在想方向", "旧书店", "夜里有灯", "母亲的手", "雨停以后", "给十年后的自己"];
let running = null;                   // 正在写的请求
let lastQuestion = "";
const errands = new Set();            // 正在改的行、正在想的题目

// ── 写诗 ────────────────────────────────────────────────────────────
async function write(question, seed = options.seed ?? anySeed()) {
  question = question.trim();
  if ((!question && !hasControls()) || running) return;
  lastQuestion = question;
  const jobs = plan(question, seed), views = jobs.flatMap((job) => job.views);
  running = new AbortController();
  showBusy(true);
  showSheet(views);
  hideProblem();
  $("question").value = "";
  fit();
  $("status").textContent = "正在写……";
  const ends = await Promise.all(jobs.map((job) => runJob(job, question, seed)));
  running = null;
  showBusy(false);
  if (ends.every((end) => end === "stop")) $("status").textContent = views.length > 1 ? `写好了，共${howMany(views.length)}` : "写好了";
  if (views.some((view) => view.text.trim())) remember(question, views);
  else if (!ends.includes("stop")) giveBack(question);
}

function plan(question, seed) {       // 要问的几次：并排比较时一个模型一次，否则一次写几首
  const asked = given(), names = rival() ? [model(), rival()] : [model()];
  const count = rival() ? 1 : options.n;
  return names.map((name, place) => ({
    model: name,
    asked,
    views: Array.from({ length: count }, (_, number) => {
      const index = place + number;
      const heading = rival() ? modelLabel(name) : `其${NUMERALS[index + 1]}`;
      return new PoemView({ index, question, seed: seed + number, model: name, asked, heading });
    }),
  }));
}

async function runJob(job, question, seed) {   // 返回怎样结束的
  let end = "broken";
  try {
    await receive(requestBody(job, question, seed), job.views);
    end = "stop";
  } catch (error) {
    if (error.name === "AbortError") { end = "cancelled"; $("status").textContent = "停笔了"; }
    else showProblem(error);
  }
  for (const view of job.views) view.finish(end);
  return end;
}

function requestBody(job, question, seed) {
  const messages = [{ role: "user", content: question }];
  return { model: job.model, messages, stream: true, n: job.views.length, ...job.asked, seed };
}

async function receive(body, views) {
  const response = await call("/v1/chat/completions", body, running.signal);
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "", done = false;
  while (!done) {
    const part = await reader.read();
    if (part.done) break;
    rest += decoder.decode(part.value, { stream: true });
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") { done = true; break; }
      apply(JSON.parse(data), views);
    }
  }
  if (!done) throw new Error("broken");
}

function apply(chunk, views) {
  if (chunk.error) throw new Problem(500, chunk.error.message);
  const low = scrollY + innerHeight > document.documentElement.scrollHeight - 200;
  for (const { index, delta, finish_reason: end } of chunk.choices) {
    if (delta.content) views[index].add(delta.content);
    if (end) views[index].finish(end);
  }
  if (low && $("poems").dataset.n === "1") keepInSight(views[0].verse.lastElementChild);
}

function keepInSight(element) {       // 正在写的一行不要落到输入框后面
  const below = element.getBoundingClientRect().bottom - document.querySelector(".dock").getBoundingClientRect().top;
  if (below > 0) scrollBy({ top: below });
}

function giveBack(question) {         // 一个字也没写出来：题目还给输入框
  $("sheet").hidden = true;
  $("welcome").hidden = false;
  if (!$("question").value) $("question").value = question;
  fit();
}

// ── 页面的样子 ──────────────────────────────────────────────────────
function showSheet(views) {
  $("welcome").hidden = true;
  $("sheet").hidden = false;
  $("sheet").dataset.n = $("poems").dataset.n = views.length;
  $("title").textContent = views.length === 1 ? views[0].title : views[0]?.question || UNTITLED;
  $("poems").replaceChildren(...views.map((view) => view.root));
  scrollTo({ top: 0 });
}

function showBusy(busy) {
  const focused = document.activeElement;
  $("write").hidden = busy;
  $("stop").hidden = !busy;
  if (!busy && (focused === $("stop") || focused === document.body)) $("question").focus({ preventScroll: true });
  if (busy && focused !== $("question")) $("stop").focus();
  showReady();
}

function showReady() { $("write").disabled = !$("question").value.trim() && !hasControls(); }

function fit() {
  const area = $("question");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
  showReady();
}

function showProblem(error) {
  $("problem-text").textContent = error instanceof Problem ? error.message : UNREACHABLE;
  $("retry").hidden = !lastQuestion && !hasControls();
  $("problem").hidden = false;
  $("status").textContent = "";
  if (error.status === 401) { $("key-row").hidden = false; openDialog("options"); $("key").focus(); }
}

function hideProblem() { $("problem").hidden = true; }

function openDialog(id) { if (!$(id).open) $(id).showModal(); }

function halt() {                     // 停下正在写的、正在改的
  running?.abort();
  for (const errand of errands) errand.abort();
}

// ── 往日 ────────────────────────────────────────────────────────────
const past = () => { const list = store.get("poem.past", []); return Array.isArray(list) ? list : []; };
const poemsOf = (entry) => (Array.isArray(entry.poems) ? entry.poems : []).slice(0, 4);
const titleOf = (entry) => String(entry.question || poemsOf(entry)[0]?.title || UNTITLED);

function remember(question, views) {
  const time = Date.now(), entry = { time, question, asked: views[0].asked, poems: views.map((view) => view.saved()) };
  for (const view of views) view.time = time;
  keep([entry, ...past()].slice(0, 200));
}

function revisePast(view) {           // 改过一行、起了题目：往日里的也改
  const list = past(), entry = list.find(({ time }) => time === view.time);
  if (!entry) return;
  entry.poems[view.index] = view.saved();
  keep(list);
}

function keep(list) {                 // 存不下就忘掉最早的一半
  while (!store.set("poem.past", list) && list.length > 1) list = list.slice(0, list.length >> 1);
}

function showPast() {
  const list = past();
  $("past").replaceChildren(...list.map(pastRow));
  $("no-past").hidden = list.length > 0;
  $("past-acts").hidden = list.length === 0;
}

function pastRow(entry) {
  const open = make("button", "open"), drop = make("button", "drop", "×"), item = make("li");
  open.type = drop.type = "button";
  const first = String(poemsOf(entry)[0]?.text || "").trim().split("\n")[0];
  const when = new Date(entry.time).toLocaleDateString("zh-CN", { month: "long", day: "numeric" });
  open.append(make("b", "", titleOf(entry)), make("span", "", `${when}　${first}`));
  open.addEventListener("click", () => { $("history").close(); reopen(entry); });
  drop.setAttribute("aria-label", `删去《${titleOf(entry)}》`);
  drop.addEventListener("click", () => { keep(past().filter(({ time }) => time !== entry.time)); showPast(); $("history").querySelector(".close").focus(); });
  item.append(open, drop);
  return item;
}

function reopen(entry) {
  if (running) return;
  const poems = poemsOf(entry), compared = new Set(poems.map((poem) => poem.model)).size > 1;
  const views = poems.map((poem, index) => {
    const heading = compared ? modelLabel(poem.model) : `其${NUMERALS[index + 1]}`;
    const { seed, title = "" } = poem, known = info.models.includes(poem.model);
    const view = new PoemView({ index, question: String(entry.question ?? ""), seed, title, heading,
      model: known ? poem.model : model(), asked: entry.asked ?? {} });
    view.time = entry.time;
    view.add(String(poem.text));
    view.finish(poem.end || "stop");
    return view;
  });
  $("spoken").textContent = "";
  hideProblem();
  showSheet(views);
  for (const view of views) view.showTitle();
}

function exportPast() {
  const texts = past().flatMap((entry) => poemsOf(entry).map((poem) => {
    const day = new Date(entry.time).toLocaleDateString("zh-CN");
    return `${asText(entry.question || poem.title || UNTITLED, String(poem.text))}\n（${day}　种子 ${poem.seed}）\n`;
  }));
  download(new Blob([texts.join("\n――――――\n\n")], { type: "text/plain;charset=utf-8" }), "小诗.txt");
}

// ── 按钮与键盘 ──────────────────────────────────────────────────────
for (const idea of IDEAS) {
  const button = make("button", "", idea), item = make("li");
  button.type = "button";
  button.addEventListener("click", () => write(idea));
  item.append(button);
  $("ideas").append(item);
}
const send = () => write($("question").value);
$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("input", fit);
$("question").addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229;   // 输入法选字时的回车不算
  if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey && !composing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => {
  const inDialog = document.querySelector("dialog[open]");
  if (event.key === "Escape" && !inDialog) halt();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && (!inDialog || inDialog.id === "options")) {
    event.preventDefault();           // 在哪里都能写，抽屉开着也能
    inDialog?.close();
    send();
  }
  if (event.key === "/" && !event.target.closest("input, textarea, select")) { event.preventDefault(); $("question").focus(); }
});
$("stop").addEventListener("click", halt);
$("retry").addEventListener("click", () => { hideProblem(); write(lastQuestion); });
$("options").addEventListener("input", changeOption);
$("key").addEventListener("change", learnAboutModel);
$("choose").addEventListener("submit", (event) => { event.preventDefault(); $("options").close(); });
$("reset").addEventListener("click", resetOptions);
$("show-options").addEventListener("click", () => { showOptions(); openDialog("options"); learnAboutModel(); });
$("show-past").addEventListener("click", () => { showPast(); openDialog("history"); });
$("export").addEventListener("click", exportPast);
$("clear").addEventListener("click", () => { if (confirm("清除这个浏览器里的全部往日？")) { keep([]); showPast(); } });
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".close[type=button]")?.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
drawOptions();
showOptions();
fit();
learnAboutModel();
if (matchMedia("(pointer: fine)").matches) $("question").focus();
