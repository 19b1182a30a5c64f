"use strict";

// 一首诗做成图片：竖排（从右到左）或横排，四种纸色，画在 canvas 上

const LAYOUTS = { down: "竖排", across: "横排" };
const MARKS = "，。、；：！？”’）》」』…";   // 不放在行首
const LOW_MARKS = "，。、", MIDDLE_MARKS = "；：！？";   // 竖排时挪到右上角、挪到正中
const TURNED = /[《》〈〉「」『』（）()【】[\]—…～–\-a-zA-Z0-9+=/\\.,'"&]/;   // 竖排时转九十度
const DIGITS = "〇一二三四五六七八九";
const SIDE = 128;                     // 四周留白
let shown = null;                     // 正在看的诗
let look = { layout: "down", palette: "light", ...store.get("poem.card", {}) };

// ── 文字怎样排 ──────────────────────────────────────────────────────
function sizeOf(lines) { return lines.length > 60 ? 28 : lines.length > 28 ? 36 : 44; }

function linesOf(text) { return text.trim().split("\n").map((line) => line.trim()); }

function fold(line, fits) {           // 一行拆成几段，每段 fits；标点不落在段首
  const parts = [""];
  for (const char of line) {
    const part = parts[parts.length - 1] + char;
    if (parts[parts.length - 1] && !MARKS.includes(char) && !fits(part)) parts.push(char);
    else parts[parts.length - 1] = part;
  }
  return parts;
}

function today() {
  const day = new Date();
  const say = (number) => (number < 11 ? "〇一二三四五六七八九十"[number] : `${number < 20 ? "" : DIGITS[Math.floor(number / 10)]}十${number % 10 ? DIGITS[number % 10] : ""}`);
  const year = Array.from(String(day.getFullYear()), (digit) => DIGITS[digit]).join("");
  return `${year}年${say(day.getMonth() + 1)}月${say(day.getDate())}日`;
}

// ── 横排 ────────────────────────────────────────────────────────────
function across(pen, title, text, serif) {
  const lines = linesOf(text), size = sizeOf(lines), beat = Math.round(size * 1.9), width = 1080;
  const bodyFont = `400 ${size}px ${serif}`, titleFont = `600 62px ${serif}`;
  const measured = (font) => (part) => { pen.font = font; return pen.measureText(part).width <= width - 2 * SIDE; };
  const heads = fold(title, measured(titleFont));
  const rows = lines.flatMap((line) => (line ? fold(line, measured(bodyFont)) : [null]));
  pen.font = bodyFont;
  const widest = Math.max(...rows.map((row) => (row ? pen.measureText(row).width : 0)));
  pen.font = titleFont;
  const block = Math.max(widest, ...heads.map((head) => pen.measureText(head).width), 420);
  const left = Math.round((width - block) / 2), top = SIDE + 20, bodyTop = top + heads.length * 92 + 88;
  const bodyHeight = rows.reduce((sum, row) => sum + (row === null ? beat * 0.7 : beat), 0);
  const height = Math.min(16000, Math.max(1350, Math.round(bodyTop + bodyHeight + 250)));
  return { width, height, draw(draw, color) {
    draw.textBaseline = "top"; draw.textAlign = "left";
    draw.fillStyle = color("--ink"); draw.font = titleFont;
    heads.forEach((head, index) => draw.fillText(head, left, top + index * 92));
    draw.fillStyle = color("--seal");
    draw.fillRect(left, top + heads.length * 92 + 18, 64, 4);
    draw.fillStyle = color("--ink"); draw.font = bodyFont;
    let y = bodyTop;
    for (const row of rows) {
      if (row !== null) draw.fillText(row, left, y);
      y += row === null ? beat * 0.7 : beat;
    }
    const bottom = height - SIDE - 56;
    draw.fillStyle = color("--soft"); draw.font = `400 26px ${serif}`; draw.textBaseline = "middle";
    draw.fillText(today(), left, bottom + 38);
    seal(draw, color, serif, width - left - 76, bottom, 76);
  } };
}

// ── 竖排 ────────────────────────────────────────────────────────────
function down(pen, title, text, serif) {
  const lines = linesOf(text), size = sizeOf(lines), step = size * 1.16, pitch = Math.round(size * 1.95);
  const most = Math.min(20, Math.max(9, ...lines.map((line) => Array.from(line).length)));
  const long = (room) => (part) => Array.from(part).length <= room;
  const heads = fold(title, long(Math.floor((most * step) / 72)));
  const columns = lines.flatMap((line) => (line ? fold(line, long(most)) : [null]));
  const bodyWidth = columns.reduce((sum, column) => sum + (column === null ? pitch * 0.6 : pitch), 0);
  const wide = heads.length * 96 + 40 + bodyWidth + 110;
  const width = Math.min(16000, Math.max(1080, Math.round(wide + 2 * SIDE)));
  const tall = Math.max(most * step + 40, 700), height = Math.max(1350, Math.round(tall + 2 * SIDE + 60));
  const right = Math.round((width + wide) / 2), top = Math.round((height - tall) / 2);
  return { width, height, draw(draw, color) {
    let x = right - 36;
    draw.fillStyle = color("--ink");
    for (const head of heads) { column(draw, head, x, top, 62, 72, `600 62px ${serif}`); x -= 96; }
    draw.fillStyle = color("--seal");
    draw.fillRect(Math.round(x + 22), top, 3, 72);
    x -= 40;
    draw.fillStyle = color("--ink");
    for (const each of columns) {
      if (each !== null) column(draw, each, x, top, size, step, `400 ${size}px ${serif}`);
      x -= each === null ? pitch * 0.6 : pitch;
    }
    const day = today(), low = top + tall;
    draw.fillStyle = color("--soft");
    column(draw, day, x, low - 92 - day.length * 30, 25, 30, `400 25px ${serif}`);
    seal(draw, color, serif, x - 34, low - 68, 68);
  } };
}

function column(draw, text, x, top, size, step, font) {   // 一列字：x 是中线
  draw.font = font; draw.textAlign = "center"; draw.textBaseline = "middle";
  let y = top + step / 2;
  for (const char of text) {
    if (char === "—") draw.fillRect(x - size / 24, y - step / 2, size / 12, step + 0.5);   // 两个连成一条
    else if (TURNED.test(char)) turned(draw, char, x, y);
    else if (LOW_MARKS.includes(char)) draw.fillText(char, x + size * 0.55, y - size * 0.55);
    else if (MIDDLE_MARKS.includes(char)) draw.fillText(char, x + size * 0.25, y - size * 0.1);
    else if ("“”‘’".includes(char)) turned(draw, { "“": "「", "”": "」", "‘": "『", "’": "』" }[char], x, y);
    else draw.fillText(char, x, y);
    y += /[\x20-\x7e]/.test(char) ? step * 0.58 : LOW_MARKS.includes(char) ? step * 0.72 : step;
  }
}

function turned(draw, char, x, y) {
  draw.save();
  draw.translate(x, y);
  draw.rotate(Math.PI / 2);
  draw.fillText(char, 0, 0);
  draw.restore();
}

// ── 纸、印、框 ──────────────────────────────────────────────────────
function seal(draw, color, serif, x, y, box) {
  draw.fillStyle = color("--seal");
  draw.beginPath();
  if (draw.roundRect) draw.roundRect(x, y, box, box, box / 7); else draw.rect(x, y, box, box);
  draw.fill();
  draw.fillStyle = color("--on-seal");
  draw.textAlign = "center"; draw.textBaseline = "middle";
  draw.font = `600 ${Math.round(box * 0.6)}px ${serif}`;
  draw.fillText("诗", x + box / 2, y + box / 2 + 2);
}

function paper(draw, color, width, height) {
  draw.fillStyle = color("--paper");
  draw.fillRect(0, 0, width, height);
  const light = draw.createRadialGradient(width / 2, 0, 0, width / 2, 0, Math.max(width, height));
  const glow = color("--glow");        // 渐到同一种颜色的透明：渐到 transparent（透明的黑）中间会发灰
  light.addColorStop(0, glow); light.addColorStop(1, `${glow.slice(0, 7)}00`);
  draw.fillStyle = light;
  draw.fillRect(0, 0, width, height);
  draw.strokeStyle = color("--ink");
  draw.lineWidth = 1;
  let state = 7;                      // 纸的纤维：次次一样的伪随机
  const random = () => { state = (state * 48271) % 2147483647; return state / 2147483647; };
  draw.globalAlpha = 0.035;
  for (let k = 0; k < (width * height) / 6000; k += 1) {
    const x = random() * width, y = random() * height, turn = random() * Math.PI * 2, length = 6 + random() * 22;
    draw.beginPath();
    draw.moveTo(x, y);
    draw.quadraticCurveTo(x + Math.cos(turn) * length, y + Math.sin(turn) * length, x + Math.cos(turn + 0.6) * length * 1.6, y + Math.sin(turn + 0.6) * length * 1.6);
    draw.stroke();
  }
  draw.globalAlpha = 1;
  draw.strokeStyle = color("--rule");
  draw.lineWidth = 3;
  draw.strokeRect(44, 44, width - 88, height - 88);
  draw.lineWidth = 1;
  draw.strokeRect(54, 54, width - 108, height - 108);
}

function drawCard() {
  const canvas = $("canvas"), swatch = document.querySelector(`.swatches [data-palette="${look.palette}"]`);
  const css = getComputedStyle(swatch), color = (name) => css.getPropertyValue(name).trim();
  const card = (look.layout === "down" ? down : across)(make("canvas").getContext("2d"), shown.title, shown.text, color("--serif"));
  canvas.width = card.width; canvas.height = card.height;
  const draw = canvas.getContext("2d");
  paper(draw, color, card.width, card.height);
  card.draw(draw, color);
  canvas.setAttribute("aria-label", `《${shown.title}》的图片，${LAYOUTS[look.layout]}`);
}

// ── 看、存 ──────────────────────────────────────────────────────────
function openCard(view) {
  shown = view;
  if (!LAYOUTS[look.layout] || !document.querySelector(`[name="palette"][value="${look.palette}"]`)) look = { layout: "down", palette: "light" };
  for (const name of ["layout", "palette"]) document.querySelector(`[name="${name}"][value="${look[name]}"]`).checked = true;
  $("copy-card").hidden = !(navigator.clipboard?.write && globalThis.ClipboardItem);
  $("card").showModal();
  drawCard();
}

const picture = () => new Promise((resolve) => { $("canvas").toBlob(resolve, "image/png"); });

async function saveCard(button) {
  const blob = await picture();
  if (!blob) { flash(button, "画不了"); return; }
  download(blob, `${shown.title.replace(/[\\/:*?"<>|\s]+/g, " ").trim().slice(0, 40) || "小诗"}.png`);
  flash(button, "已存");
}

async function copyCard(button) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": picture() })]);
    flash(button, "已复制");
  } catch (error) { flash(button, "复制不了"); }
}

$("card").addEventListener("change", ({ target }) => {
  if (!(target.name in look)) return;
  look[target.name] = target.value;
  store.set("poem.card", look);
  drawCard();
});
$("save-card").addEventListener("click", ({ currentTarget }) => saveCard(currentTarget));
$("copy-card").addEventListener("click", ({ currentTarget }) => copyCard(currentTarget));
