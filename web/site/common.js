"use strict";

// 两张页面共用。放在 <head> 里：颜色在画出第一笔之前就定下，不会先亮一下

// ── 小工具 ──────────────────────────────────────────────────────────
const $ = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const store = {                       // 浏览器不许存时，页面照样能用
  get(name, otherwise) {
    try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch (error) { return otherwise; }
  },
  set(name, value) {
    try { localStorage.setItem(name, JSON.stringify(value)); return true; } catch (error) { return false; }
  },
};

// ── 服务 ────────────────────────────────────────────────────────────
const UNREACHABLE = "连不上写诗的服务。请看看 serve.py 是否还在运行。";
const apiKey = {                      // API 密钥只留在这个标签页里
  get() { try { return sessionStorage.getItem("poem.key") || ""; } catch (error) { return ""; } },
  set(key) { try { sessionStorage.setItem("poem.key", key); } catch (error) { /* 只是不记住 */ } },
};

class Problem extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, body, signal) {   // 问服务；答错误就抛 Problem，连不上就抛浏览器的 TypeError
  const key = apiKey.get();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const request = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const response = await fetch(path, { ...request, headers, signal });
  if (response.ok) return response;
  let message = "";
  try { message = (await response.json()).error.message; } catch (error) { message = ""; }
  throw new Problem(response.status, message || `服务回答了 ${response.status}`);
}

// ── 日光与夜色 ──────────────────────────────────────────────────────
const night = matchMedia("(prefers-color-scheme: dark)");
let picked = "";                      // 自己选过的
try { picked = localStorage.getItem("poem.theme") || ""; } catch (error) { picked = ""; }

function showTheme() {                // 没有选过就随系统
  const theme = picked || (night.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  const button = $("theme");
  if (!button) return;
  button.textContent = theme === "dark" ? "日光" : "夜色";
  button.setAttribute("aria-label", theme === "dark" ? "换成浅色" : "换成深色");
}

showTheme();
night.addEventListener("change", showTheme);
document.addEventListener("DOMContentLoaded", () => {
  showTheme();
  $("theme").addEventListener("click", () => {
    picked = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("poem.theme", picked); } catch (error) { /* 只是不记住 */ }
    showTheme();
  });
});
