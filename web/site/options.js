"use strict";

// 选项的抽屉：有哪些、范围、说明、笔意、模型都由服务的 /info 来，这里只照着画

const COUNTS = [["1", "一"], ["2", "两"], ["3", "三"], ["4", "四"]];
// 上次的表留着，一打开就有（格式变了就换个名字存）
const info = { options: [], styles: [], defaults: {}, models: [], file: "", kinds: null, ready: true, ...store.get("poem.table.2", {}) };
let drawn = "";                       // 已画出的表
let options = { n: 1, ...readOptions() };

function readOptions() {
  const saved = store.get("poem.options", {});
  return saved && typeof saved === "object" ? saved : {};
}

// ── 选了什么 ────────────────────────────────────────────────────────
const plainStyle = { label: "平常", options: {} };
const style = () => info.styles.find(({ label }) => label === options.style) ?? plainStyle;
const model = () => (info.models.includes(options.model) ? options.model : info.models[0]);
const rival = () => (info.models.includes(options.rival) && options.rival !== model() ? options.rival : "");
const modelLabel = (name) => (name === info.models[0] ? info.file || "默认的模型" : name);
const hasControls = () => info.options.some(({ name, control }) => control && options[name]);
const current = ({ name, neutral }) => options[name] ?? style().options[name] ?? info.defaults[name] ?? neutral;
const said = (option, value) => (option.slider.length ? Number(value).toFixed(2) : String(value));

function given() {                    // 随题目一起问的选项；没有动过的不给，服务有默认
  const found = { ...style().options };
  for (const { name } of info.options) if (name !== "seed" && options[name] !== undefined) found[name] = options[name];
  return found;
}

function summary() {
  const words = [style().label];
  if (rival()) words.push(`${modelLabel(model())} 比 ${modelLabel(rival())}`);
  else {
    if (model() !== info.models[0]) words.push(modelLabel(model()));
    if (options.n > 1) words.push(howMany(options.n));
  }
  for (const option of info.options) {
    const value = options[option.name];
    if (value === true) words.push(option.label);
    else if (value !== undefined) words.push(option.brief.replace("{}", () => said(option, value)));
  }
  return words.join(" · ");
}

// ── 画 ──────────────────────────────────────────────────────────────
function drawOptions() {
  const table = JSON.stringify([info.options, info.styles, info.models, info.file]);
  if (table === drawn) return;
  drawn = table;
  for (const option of info.options) if (!fits(option, options[option.name])) delete options[option.name];
  drawTabs("styles", "style", info.styles.map(({ label }) => [label, label]));
  drawTabs("counts", "n", COUNTS);
  $("models").hidden = info.models.length < 2;
  const names = info.models.map((name) => [name, modelLabel(name)]);
  $("model").replaceChildren(...names.map(choice));
  $("rival").replaceChildren(...[["", "不比"], ...names].map(choice));
  const rows = (common) => info.options.filter((option) => option.common === common).map(optionRow);
  $("common").replaceChildren(...rows(true));
  $("rare").replaceChildren(...rows(false));
}

function drawTabs(id, name, entries) {
  $(id).replaceChildren(...entries.map(([value, text]) => {
    const label = make("label"), input = make("input");
    [input.type, input.name, input.value] = ["radio", name, value];
    label.append(input, make("span", "", text));
    return label;
  }));
}

function choice([value, text]) {
  const item = make("option", "", text);
  item.value = value;
  return item;
}

function fits(option, value) {        // 存着的值还在可选的里面吗
  return value === undefined || option.kind !== "choice" || typeof value === "boolean" || (option.choices ?? []).includes(value);
}

function optionRow(option) {
  const row = make("div", "row"), label = make("label"), input = optionInput(option);
  const note = make("small", "", option.note);
  label.htmlFor = input.id = option.name;
  note.id = `${option.name}-note`;
  input.setAttribute("aria-describedby", note.id);
  label.append(make("span", "", option.label));
  if (option.slider.length) {
    const output = make("output");
    output.id = `${option.name}-shown`;
    output.htmlFor = option.name;
    label.append(output);
  }
  if (input.type === "number") row.classList.add("short");
  row.append(label, input, note);
  if (option.prompt) {
    const warning = make("small");
    warning.dataset.kind = option.prompt;
    warning.hidden = true;
    row.append(warning);
  }
  return row;
}

function optionInput(option) {
  if (option.kind === "choice") return choiceInput(option);
  const input = make("input");
  if (option.slider.length) {
    input.type = "range";
    [input.min, input.max, input.step] = option.slider;
    return input;
  }
  input.placeholder = info.defaults[option.name] ?? option.blank;
  if (option.kind === "text") { input.maxLength = option.most; return input; }
  input.type = "number";
  input.inputMode = option.kind === "integer" ? "numeric" : "decimal";
  input.step = option.kind === "integer" ? 1 : "any";
  [input.min, input.max] = [option.low, option.high];
  return input;
}

function choiceInput(option) {
  const select = make("select"), entries = [["", option.blank]];
  if (option.switch) entries.push(["true", option.switch]);
  for (const name of option.choices ?? []) entries.push([name, name]);
  select.append(...entries.map(choice));
  return select;
}

function showOptions() {
  for (const input of document.querySelectorAll('[name="style"]')) input.checked = input.value === style().label;
  for (const input of document.querySelectorAll('[name="n"]')) input.checked = Number(input.value) === options.n;
  for (const option of info.options) $(option.name).value = options[option.name] ?? "";
  $("model").value = model() ?? "";
  $("rival").value = rival();
  $("key").value = apiKey.get();
  showChosen();
}

function showChosen() {               // 拉杆总有一个值：自己的、笔意的或默认的
  for (const option of info.options.filter(({ slider }) => slider.length)) {
    const value = current(option);
    $(option.name).value = value;
    $(`${option.name}-shown`).textContent = said(option, value);
    $(option.name).setAttribute("aria-valuetext", said(option, value));
  }
  $("how-many").disabled = Boolean(rival());
  $("summary").textContent = summary();
}

// ── 改 ──────────────────────────────────────────────────────────────
function changeOption({ target: { id, name, value, validity } }) {
  const option = info.options.find((one) => one.name === id);
  if (name === "style") chooseStyle(value);
  else if (name === "n") options.n = Number(value);
  else if (id === "key") { apiKey.set(value.trim()); return; }
  else if (id === "model" || id === "rival") options[id] = value;
  else if (option) choose(option, value.trim(), validity.valid);
  store.set("poem.options", options);
  showReady();
  showChosen();
}

function chooseStyle(label) {         // 换一种笔意，拉过的拉杆让给它
  options.style = label;
  for (const each of info.styles) for (const name of Object.keys(each.options)) delete options[name];
}

function choose({ name, kind }, value, valid) {
  if (value === "" || !valid) delete options[name];
  else if (kind === "choice" && value === "true") options[name] = true;
  else options[name] = kind === "number" || kind === "integer" ? Number(value) : value;
}

function resetOptions() {
  options = { n: 1 };
  store.set("poem.options", options);
  showOptions();
}

async function learnAboutModel() {
  try {
    Object.assign(info, await (await call("/info")).json());
  } catch (error) {
    $("key-row").hidden = error.status !== 401 && $("key-row").hidden;
    return;
  }
  const { options: table, styles, defaults, models, file } = info;
  store.set("poem.table.2", { options: table, styles, defaults, models, file });
  drawOptions();
  if (!info.ready) $("hint").textContent = "还没有训练好的模型。先运行 python train_gpt.py，进展见「训练」。";
  for (const note of document.querySelectorAll("[data-kind]")) {
    const untrained = info.kinds && !info.kinds.includes(note.dataset.kind);
    note.hidden = !untrained;
    note.textContent = untrained ? "这个模型没有练过这种要求，效果可能不理想" : "";
  }
  showOptions();
}
