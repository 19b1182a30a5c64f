"use strict";

// 一首诗在纸上：边写边长，写完可以逐行改、起题目、抄走

const NUMERALS = ["", "一", "二", "三", "四"];   // 第几首
const howMany = (n) => `${n === 2 ? "两" : NUMERALS[n]}首`;
const UNTITLED = "无题";
const ENDS = { length: "写到长度上限", cancelled: "停笔于此", broken: "中断于此" };
const anySeed = () => Math.floor(Math.random() * 2 ** 31);

class PoemView {
  // asked 是写它时的选项，改一行时照旧；heading 是几首并排时各自的小标题
  constructor({ index = 0, question = "", seed, model = "", asked = {}, heading = "", title = "" }) {
    Object.assign(this, { index, question, seed, model, asked, heading });
    this.name = title;                // 后来起的题目
    this.text = ""; this.end = null;
    this.before = [];                 // 改过的行：每次改之前的全诗
    this.time = null;                 // 往日里是哪一条
    this.line = null; this.stanza = null; this.gap = false;   // 正在写的行与节
    this.build();
    this.openLine();
  }

  get title() { return this.question || this.name || UNTITLED; }

  build() {
    this.root = make("article", "poem writing");
    this.root.setAttribute("aria-label", this.heading);
    this.root.setAttribute("aria-busy", "true");
    this.head = make("h3", "", this.heading);
    this.verse = make("div", "verse");
    this.verse.setAttribute("role", "group");
    this.verse.setAttribute("aria-label", "诗的正文");
    this.verse.addEventListener("keydown", (event) => this.walk(event));
    this.foot = make("footer", "foot");
    this.root.append(this.head, this.verse, this.foot);
  }

  // ── 写 ──
  openLine() {
    if (!this.stanza || this.gap) { this.stanza = make("p", "stanza"); this.verse.append(this.stanza); this.gap = false; }
    this.line = make("span", "line last");
    this.stanza.append(this.line);
  }

  add(piece) {                        // 一行一行地写；空行开新的一节
    this.text += piece;
    piece.replace(/\r/g, "").split("\n").forEach((part, position) => {
      if (position > 0) this.breakLine();
      if (part) {
        if (!this.line) this.openLine();
        this.line.append(make("span", "ink", part));
      }
    });
  }

  breakLine() {
    if (!this.line) { this.gap = Boolean(this.stanza); return; }
    if (!this.line.textContent.trim()) { this.line.textContent = ""; return; }
    const said = this.line.textContent;
    this.line.textContent = said;     // 墨干了：并成一段文字
    if (this.index === 0) $("spoken").textContent = said;
    this.line.classList.remove("last");
    this.line = null;
  }

  finish(end) {
    if (this.end) return;
    this.end = end;
    if (this.line) this.breakLine();
    this.root.classList.remove("writing");
    this.root.setAttribute("aria-busy", "false");
    if (this.text.trim()) this.lay(); else this.verse.replaceChildren(make("p", "stanza", "（没有写出字来）"));
    this.showFoot();
  }

  // ── 写完了 ──
  lay(fresh = 0) {                    // 照 this.text 重新排一遍，每行带一个“改”；fresh 是刚换上的第几行
    let number = 0;
    this.verse.replaceChildren(...this.text.trim().split(/\n\s*\n/).map((part) => {
      const stanza = make("p", "stanza");
      for (const text of part.split("\n").filter((each) => each.trim())) {
        number += 1;
        stanza.append(this.layLine(text, number, number === fresh));
      }
      return stanza;
    }));
  }

  layLine(text, number, fresh) {
    const line = make("span", fresh ? "line fresh" : "line", text), button = make("button", "amend");
    button.type = "button";
    button.tabIndex = number === 1 ? 0 : -1;   // Tab 只停一次，行与行之间用上下键
    button.title = "改这一行";
    button.setAttribute("aria-label", `改第 ${number} 行：${text.trim()}`);
    button.addEventListener("click", () => this.amend(number));
    line.append(button);
    return line;
  }

  amends() { return [...this.verse.querySelectorAll(".amend")]; }

  focusLine(number) {
    this.amends().forEach((button, index) => { button.tabIndex = index + 1 === number ? 0 : -1; });
    this.amends()[number - 1]?.focus();
  }

  walk(event) {
    const buttons = this.amends(), at = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    this.focusLine(Math.min(Math.max(to, 0), buttons.length - 1) + 1);
  }

  async amend(number) {               // 改这一行
    const line = this.amends()[number - 1].parentElement, old = this.text;
    line.classList.add("thinking");
    const body = { ...this.asked, title: this.question || this.name, poem: old, line: number, seed: anySeed(), model: this.model };
    const found = await this.ask("/v1/poems/rewrite", body, `正在改第 ${number} 行……`);
    line.classList.remove("thinking");
    if (!found) return;
    this.before.push(old);
    this.change(found.poem, number);
    $("status").textContent = `第 ${number} 行改好了`;
    $("spoken").textContent = found.text;
  }

  change(text, number = 0) {          // 换上改过的诗
    this.text = text;
    const inside = this.verse.contains(document.activeElement);
    this.lay(number);
    if (inside) this.focusLine(number || 1);
    this.showFoot();
    revisePast(this);
  }

  undo() {
    this.change(this.before.pop());
    $("status").textContent = "改回去了";
    this.foot.querySelector("button").focus();
  }

  async ask(path, body, words) {      // 问服务一件事；没问成就说明白，返回 null
    if (this.root.getAttribute("aria-busy") === "true") return null;
    const controller = new AbortController();
    errands.add(controller);
    this.root.setAttribute("aria-busy", "true");
    $("status").textContent = words;
    hideProblem();
    try {
      return await (await call(path, body, controller.signal)).json();
    } catch (error) {
      if (error.name === "AbortError") $("status").textContent = "停下了";
      else showProblem(error);
      return null;
    } finally {
      errands.delete(controller);
      this.root.setAttribute("aria-busy", "false");
    }
  }

  // ── 题目 ──
  async suggest(button) {             // 起个题目
    button.disabled = true;
    const found = await this.ask("/v1/poems/titles", { poem: this.text, n: 5, model: this.model }, "正在想题目……");
    button.disabled = false;
    if (!found) return;
    const names = make("div", "names");
    names.setAttribute("role", "group");
    names.setAttribute("aria-label", "可以用的题目");
    names.append(...found.titles.map((title) => this.button(title, () => this.rename(title, names))));
    this.foot.querySelector(".names")?.remove();
    this.foot.prepend(names);
    $("status").textContent = `想了 ${found.titles.length} 个题目`;
    names.querySelector("button")?.focus();
  }

  rename(title, names) {
    this.name = title;
    for (const each of names.children) each.setAttribute("aria-pressed", String(each.textContent === title));
    this.showTitle();
    $("status").textContent = `题目：${title}`;
    revisePast(this);
  }

  showTitle() {
    this.head.textContent = this.name && !this.question ? `${this.heading}　${this.name}` : this.heading;
    if ($("poems").dataset.n === "1") $("title").textContent = this.title;
  }

  // ── 下面的一行事实与几个按钮 ──
  showFoot() {
    const lines = this.text.split("\n").filter((line) => line.trim()).length;
    const chars = Array.from(this.text.replace(/\s/g, "")).length;
    const facts = [`${lines} 行`, `${chars} 字`, `种子 ${this.seed}`];
    if (this.before.length) facts.push(`改过 ${this.before.length} 次`);
    if (ENDS[this.end]) facts.push(ENDS[this.end]);
    const acts = make("div", "acts"), names = this.foot.querySelector(".names");
    acts.append(this.button("复制", (button) => this.copy(button)));
    acts.append(this.button("做成图片", () => openCard(this)));
    if (this.before.length) acts.append(this.button("撤销", () => this.undo()));
    if (!this.question && this.text.trim()) acts.append(this.button("起个题目", (button) => this.suggest(button)));
    acts.append(this.button("再写一首", () => write(this.question, anySeed())));
    const again = this.button("同种子", () => write(this.question, this.seed));
    again.title = "种子不变，用现在的选项；选项也没有变，就是原来那首";
    acts.append(again);
    this.foot.replaceChildren(...(names ? [names] : []), make("p", "facts", facts.join(" · ")), acts);
  }

  button(label, action) {
    const button = make("button", "", label);
    button.type = "button";
    button.addEventListener("click", () => action(button));
    return button;
  }

  async copy(button) {
    const text = asText(this.title, this.text);
    let done = true;
    try { await navigator.clipboard.writeText(text); } catch (error) { done = copyOldWay(text); }
    flash(button, done ? "已复制" : "复制不了");
  }

  saved() { return { text: this.text, seed: this.seed, end: this.end, model: this.model, title: this.name }; }
}

const asText = (title, text) => `《${title}》\n\n${text.trim()}\n`;

function copyOldWay(text) {           // 局域网的 http 页面没有 navigator.clipboard
  const area = make("textarea", "unseen");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

function flash(button, words) {
  const label = button.dataset.label || button.textContent;
  button.dataset.label = label;
  button.textContent = words;
  $("status").textContent = words;
  setTimeout(() => { button.textContent = label; }, 1600);
}

function download(blob, name) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
