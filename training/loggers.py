"""训练的曲线也送到别处看：LOGGER 里的 tensorboard、swanlab、wandb（都在本机、离线）。

train_log.csv 总是写的，不在这里。每个去处一个类，包都可以不装：没有装、或中途出错的，说一句就
不再用它，训练照常。WORK_DIR 里的 logs/ 放它们的文件与编号，续训时接着同一条曲线，横轴是迭代。
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Callable, NamedTuple

from support import artefacts, files


class Home(NamedTuple):
    """一次训练的曲线放在哪里。"""

    folder: Path
    run_id: str  # 续训时不变
    done: int  # 已经记到第几次迭代，0 = 新的训练
    values: dict  # 配置


class Logger:
    """一个去处；step 是第几次迭代。"""

    def scalars(self, step: int, values: dict) -> None:
        """一次更新的各个数，名字同 train_log.csv 的列；验证过的才有 val_bpc。"""

    def poem(self, step: int, prompt: str, text: str) -> None:
        """一首示例诗。"""

    def picture(self, step: int, path: Path) -> None:
        """收场时的 loss.png。"""

    def close(self) -> None:
        """写完、关掉。"""


class TensorBoard(Logger):
    """看：tensorboard --logdir WORK_DIR/logs"""

    def __init__(self, home: Home) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = home.done + 1 if home.done else None  # 续训：检查点以后的作废
        self.writer = SummaryWriter(str(home.folder / "tensorboard"), purge_step=purge)

    def scalars(self, step: int, values: dict) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def poem(self, step: int, prompt: str, text: str) -> None:
        lines = "  \n".join(text.strip().split("\n"))  # Markdown 的换行
        self.writer.add_text("poem", f"**{prompt}**\n\n{lines}", step)

    def picture(self, step: int, path: Path) -> None:
        from matplotlib import image

        self.writer.add_image("loss_picture", image.imread(path), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _Tracker(Logger):
    """swanlab 与 wandb：接口相同，只是 init 的参数不同。"""

    def __init__(self, module: Any, **options: Any) -> None:
        self.module = module
        self.run = module.init(project="GPT-Modern-poem", resume="allow", **options)

    def scalars(self, step: int, values: dict) -> None:
        self.run.log(values, step=step)

    def picture(self, step: int, path: Path) -> None:
        self.run.log({"loss_picture": self.module.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


class SwanLab(_Tracker):
    """看：swanlab sync WORK_DIR/logs/swanlab/run-…（联网时）"""

    def __init__(self, home: Home) -> None:
        import swanlab

        folder = home.folder / "swanlab"
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            swanlab, id=home.run_id, logdir=str(folder), mode="offline", config=home.values
        )

    def poem(self, step: int, prompt: str, text: str) -> None:
        self.run.log({"poem": self.module.Text(text, caption=prompt)}, step=step)


class Wandb(_Tracker):
    """看：wandb sync WORK_DIR/logs/wandb/offline-run-…（联网时）"""

    def __init__(self, home: Home) -> None:
        import wandb

        home.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            wandb, id=home.run_id, dir=str(home.folder), mode="offline", config=home.values
        )

    def poem(self, step: int, prompt: str, text: str) -> None:
        table = self.module.Table(columns=["prompt", "poem"], data=[[prompt, text]])
        self.run.log({"poem": table}, step=step)


KINDS = {"tensorboard": TensorBoard, "swanlab": SwanLab, "wandb": Wandb}


class Loggers(Logger):
    """要用的全部去处；出错的说一句就丢下。"""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.active = {}  # 名字 → Logger

    def open(self, names: list, home: Home) -> None:
        """打开 LOGGER 里写的；没有装的说出怎样装。"""
        for name in names:
            if name not in KINDS:
                continue
            try:
                self.active[name] = KINDS[name](home)
            except ImportError:
                self.say(f"没有安装 {name}，只记 train_log.csv；要用它：pip install {name}")
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self.active.pop(name, None)
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        self.say(f"{name} 出错，不再用它（{reason}）；训练与 {artefacts.TRAIN_LOG} 照常")

    def _each(self, work: Callable[[Logger], None]) -> None:
        for name, logger in list(self.active.items()):
            try:
                work(logger)
            except Exception as error:
                self._drop(name, error)

    def scalars(self, step: int, values: dict) -> None:
        self._each(lambda logger: logger.scalars(step, values))

    def poem(self, step: int, prompt: str, text: str) -> None:
        self._each(lambda logger: logger.poem(step, prompt, text))

    def picture(self, step: int, path: Path) -> None:
        if Path(path).exists():
            self._each(lambda logger: logger.picture(step, path))

    def close(self) -> None:
        self._each(lambda logger: logger.close())
        self.active.clear()


def names_in(text: str) -> list:
    """LOGGER 的值 → 名字，不重复。"""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def home(folder: Path, done: int, values: dict) -> Home:
    """WORK_DIR/logs/ 与这次训练的编号；第一次用时定下编号。"""
    place = folder / artefacts.LOGS
    place.mkdir(exist_ok=True)
    path = place / "run_id"
    if not path.exists():
        files.write_text(path, uuid.uuid4().hex[:21])  # SwanLab 的旧版要恰好 21 位
    return Home(place, path.read_text(encoding="utf-8").strip(), done, values)


def numbers(row: dict) -> dict:
    """train_log.csv 的一行 → 画得出的数。"""
    shown = {name: value for name, value in row.items() if name not in ("iter", "update")}
    return {name: float(value) for name, value in shown.items() if value != ""}
