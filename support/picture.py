"""图：中文字体，没有 matplotlib 时说一次。"""

from __future__ import annotations

from typing import Any

_CJK_FONTS = (
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
)
_plot_state = {"warned": False, "chinese": False}


def setup_plot() -> Any:
    """返回配好中文字体的 matplotlib.pyplot（Agg 后端）；没装 matplotlib 时说一次并返回 None。"""
    try:
        import matplotlib
    except ImportError:
        if not _plot_state["warned"]:
            _plot_state["warned"] = True
            print("没有安装 matplotlib，跳过画图（pip install matplotlib）。")
        return None
    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    installed = {font.name for font in font_manager.fontManager.ttflist}
    chosen = [name for name in _CJK_FONTS if name in installed]
    _plot_state["chinese"] = bool(chosen)
    if chosen:
        matplotlib.rcParams["font.sans-serif"] = [chosen[0], "DejaVu Sans"]
        matplotlib.rcParams["axes.unicode_minus"] = False
    return pyplot


def plot_text(chinese: str, english: str) -> str:
    """有中文字体时用中文，否则用英文，免得图上全是方框。"""
    return chinese if _plot_state["chinese"] else english
